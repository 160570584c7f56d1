"""Command lines: they parse and call, the package does the work."""
