"""Embeddings that are there -> who resembles whom: search, likely duplicates, a page to look at and to listen to."""
