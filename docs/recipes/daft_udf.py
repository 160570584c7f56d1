"""python daft_udf.py "FOLDER/**/*.wav" OUT: embeddings by Daft, a process with a model for each of max_concurrency."""

import sys

import daft


@daft.cls(max_concurrency=1)  # with cards: gpus=1, max_concurrency= their number
class Embedder:
    def __init__(self):
        from hear_transformers.tiny import load_model

        self.model = load_model(layer=8)

    @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=64)
    def embed(self, paths):
        return [vector.tolist() for vector in self.model.encode(paths.to_pylist(), num_workers=0)]


files = daft.from_glob_path(sys.argv[1])
files.select("path", Embedder().embed(files["path"]).alias("embedding")).write_parquet(sys.argv[2])
