"""Audio files to waveforms: `audio.open(path)` is an `AudioFile`.

The content of a file (`containers`) decides whether libsndfile (`sndfile`) or FFmpeg (`ffmpeg`) decodes it; where its
audio begins and ends, `surveys` find out, whatever its header counts (`chunks`, `xiph`, `mpeg`, `views`); channels are
averaged or chosen (`levels`), and soxr resamples (`reading`), or its kernels on the device of the network do
(`resampling`); what lies at `addresses` is fetched. `clips` are what is embedded, read by `workers` ahead of the
network, long files by threads in `pieces`; `inputs` turns arrays and other holders of sound into clips.
"""

from .reading import SUFFIXES, AudioFile, read, resample

open = AudioFile

__all__ = ["SUFFIXES", "AudioFile", "open", "read", "resample"]
