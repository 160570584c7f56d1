"""HEAR's benchmark: its official programs unmodified, a faster embedding stage, and tables of scores."""
