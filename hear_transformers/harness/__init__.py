"""HEAR's benchmark: its official programs as they are, a faster embedding stage, and the scores of a run."""
