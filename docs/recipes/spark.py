"""spark-submit spark.py LIST.parquet OUT: embeddings by Spark, of a table with the column path."""

import sys

import pandas
from pyspark.sql import SparkSession


def embed(batches):
    from hear_transformers.tiny import load_model

    model = load_model(layer=8)  # once for each task: let a partition hold thousands of files
    for batch in batches:
        vectors = model.encode(batch["path"].tolist(), num_workers=0)
        yield pandas.DataFrame({"path": batch["path"], "embedding": [vector.tolist() for vector in vectors]})


spark = SparkSession.builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", 64).getOrCreate()
paths = spark.read.parquet(sys.argv[1]).select("path")
paths.mapInPandas(embed, "path string, embedding array<float>").write.parquet(sys.argv[2])
