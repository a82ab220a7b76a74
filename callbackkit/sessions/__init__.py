"""Sessions: for now, the callbacks of one process."""
