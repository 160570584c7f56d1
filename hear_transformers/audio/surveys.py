"""What of a file is audio, found by its content: headers are wrong where a recorder, a card or a program failed.

The rule for counts and ends, the same for all formats (`chunks`, `xiph`, `mpeg` look):

- More audio than the header counts: all of it is read, with a warning. Bytes behind the counted end are audio unless
  they are something else: chunks of the format, tags, text, zeros, another file.
- Less than it counts, and the audio is all there was: it is read, with a warning. That it was all is known where
  something else in the file says so: the size of the outermost chunk, a last frame that is complete; though not if the
  header counts `views.MOST_TIMES` as much. Or as little lacks as a recorder counts too much, up to
  `chunks.MISCOUNTED_BYTES` of whole samples.
- Less than it counts otherwise, or the end is no audio: the recording is damaged. It is refused, with what there is in
  seconds, or read up to the damage, with a warning, where the user asks for that.
- Sizes that a program leaves where it cannot know them (0xFFFFFFFF, see `containers.UNKNOWN_BYTES`) count nothing.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from . import chunks, mpeg, xiph
from .views import Survey, behind_id3, bytes_at

MPEG_SUFFIXES = (".mp1", ".mp2", ".mp3", ".mpga", ".mpa")
"""Names of files that may begin with other bytes than MPEG audio."""

MOST_FILES = 10_000
"""Files that are looked for in one that was joined."""


def survey(file: BinaryIO, n_bytes: int, suffix: str = "") -> Survey:
    """Survey a file, in whole.

    Parameters
    ----------
    n_bytes : of the file
    suffix : of its name, in lower case
    """
    surveys: list[Survey] = []
    position = 0
    while len(surveys) < MOST_FILES:
        found = _one(file, position, n_bytes, suffix)
        if position and not found.streams:  # libsndfile may know what is not known here
            found = Survey(((range(position, n_bytes),),), is_plain=False)
        surveys.append(found)
        if found.following is None:
            break
        position = found.following
    if len(surveys) == 1:
        return surveys[0]
    return Survey(
        streams=tuple(stream for each in surveys for stream in each.streams),
        is_plain=False,
        notes=tuple(dict.fromkeys(note for each in surveys for note in each.notes)),
        damage=next((each.damage for each in surveys if each.damage), ""),
        is_counted=surveys[-1].is_counted,
        is_exact=all(each.is_exact for each in surveys),
    )


def _one(file: BinaryIO, begin: int, n_bytes: int, suffix: str) -> Survey:
    """Survey the file that begins at a position; one that ends within its header is left to libsndfile."""
    try:
        return _surveyed(file, begin, n_bytes, suffix)
    except struct.error:
        return Survey()


def _surveyed(file: BinaryIO, begin: int, n_bytes: int, suffix: str) -> Survey:
    start = behind_id3(file, begin)
    head = bytes_at(file, start, 12)
    if head[:4] == b"OggS":
        return xiph.ogg(file, start, n_bytes)
    if head.startswith(b"fLaC"):
        found = xiph.flac(file, start, n_bytes)
    elif head[:4] in chunks.FILES:
        found = chunks.survey(file, start, n_bytes)
    elif start > begin or suffix in MPEG_SUFFIXES or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        found = mpeg.survey(file, begin, n_bytes)
    else:
        found = None
    # libsndfile may know what is not known here.
    return found or Survey()
