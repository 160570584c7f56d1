"""How small networks are made without real audio: a streamed corpus, what teaches them, their training and scores."""
