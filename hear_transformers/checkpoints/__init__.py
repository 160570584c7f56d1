"""Published and trained checkpoint files, read into state dicts."""
