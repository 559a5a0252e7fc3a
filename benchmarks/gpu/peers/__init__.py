"""What tinycomp is measured beside. Each module imports its library when it is imported."""
