"""Embeddings, tags and search over HTTP: `hear-transformers serve`.

A body is written to a file of ours as it arrives (`uploads`), decoded in a process that may die of it (`decoding`),
embedded by one thread together with what else waits (`batching`), and answered (`answers`); `service` is the way,
`app` the endpoints, `gate` what all requests pass, `models` what is served, `running` the port and its end.

FastAPI checks queries and describes the endpoints, so that clients can be generated; bodies it never sees. Of the two
frameworks with such a description it needs fewer packages than Litestar.
"""

from ..errors import import_extra

for _module in ("fastapi", "uvicorn", "python_multipart"):
    import_extra("the server", _module, "serve")
