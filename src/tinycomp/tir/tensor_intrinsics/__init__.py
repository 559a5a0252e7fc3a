"""Instructions that several threads of a GPU execute together, one record for each."""
