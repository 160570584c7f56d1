"""python beam.py 'gs://bucket/clips/*.wav' OUT: embeddings by Apache Beam, for Dataflow, Flink or this machine."""

import sys

import apache_beam as beam
import pyarrow
from apache_beam.io import fileio
from apache_beam.options.pipeline_options import PipelineOptions

SCHEMA = pyarrow.schema([("path", pyarrow.string()), ("embedding", pyarrow.list_(pyarrow.float32()))])


class Embed(beam.DoFn):
    def setup(self):
        from hear_transformers.tiny import load_model

        self.model = load_model(layer=8)  # once for each worker

    def process(self, paths):
        vectors = self.model.encode(paths, num_workers=0)
        yield from ({"path": path, "embedding": vector.tolist()} for path, vector in zip(paths, vectors, strict=True))


with beam.Pipeline(options=PipelineOptions(sys.argv[3:])) as pipeline:
    found = pipeline | fileio.MatchFiles(sys.argv[1]) | beam.Map(lambda match: match.path)
    batches = found | beam.Reshuffle() | beam.BatchElements(16, 64)
    batches | beam.ParDo(Embed()) | beam.io.WriteToParquet(sys.argv[2], SCHEMA, file_name_suffix=".parquet")
