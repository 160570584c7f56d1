"""Where in a clip a network finds what it says of it: maps over the spectrogram."""
