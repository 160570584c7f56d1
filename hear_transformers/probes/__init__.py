"""Shallow classifiers on frozen embeddings: what an embedding is worth for a task, and a classifier of one's own."""
