"""Pictures: schedules as web pages."""
