"""Two models on the same labelled clips, layer by layer: clusters, similarity, maps."""
