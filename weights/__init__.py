"""Checkpoint manifest, model cards and the embedded default model (data files)."""
