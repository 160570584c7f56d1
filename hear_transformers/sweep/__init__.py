"""Which layer, pooling, time resolution and window for a task: embeddings of all settings, scored by probes.

``hear-transformers sweep`` is this room's command.
"""
