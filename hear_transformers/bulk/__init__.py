"""Many files to output files, resumable."""
