"""Published and trained files to state dicts."""
