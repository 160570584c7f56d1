"""Models as files for other programs: ONNX, and programs of `torch.export`; waveform in, embedding out."""
