"""Waveforms to embeddings, in memory."""
