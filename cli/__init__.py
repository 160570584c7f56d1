"""Command lines: they parse arguments and call the package."""
