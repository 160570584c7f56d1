"""Every input that users get wrong: a clear error that names it, or a finite answer; never a traceback, never NaN."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import efficientat, passt
from hear_transformers.audio import reading
from hear_transformers.errors import AudioError, OptionError, WeightsError
from tests.helpers.damaged import BAD_FILES, NOISE, RATE, content, cut, sound

GOOD_FILES = {
    "one sample": ("a.wav", sound(NOISE[:1])),
    "one sample of 192 kHz": ("a.wav", sound(NOISE[:1], 192_000)),
    "silence": ("a.wav", sound(np.zeros(RATE))),
    "full scale": ("a.wav", sound(np.sign(NOISE))),
    "integers stored as floats": ("a.wav", sound(32_768 * NOISE, subtype="FLOAT")),
    "8 bit": ("a.wav", sound(subtype="PCM_U8")),
    "24 bit": ("a.wav", sound(subtype="PCM_24")),
    "float64": ("a.wav", sound(subtype="DOUBLE")),
    "wav named .mp3": ("a.mp3", sound(format="WAV")),
    "no suffix": ("a", sound(format="WAV")),
    **{f"{n} channels": ("a.wav", sound(np.stack([NOISE] * n, 1))) for n in range(1, 9)},
    **{f"{rate} Hz": ("a.wav", sound(sample_rate=rate)) for rate in (8_000, 11_025, 44_100, 48_000, 96_000, 192_000)},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_and_good_ones_are_written(embed_audio, audio_file, tmp_path, name, make, message):
    audio_file("good.aiff")
    make(tmp_path / name)
    result = embed_audio(name, "good.aiff")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {name}: ")
    with pytest.raises(AudioError, match=message):
        raise AudioError(line)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["good.npz"]


BAD_SOUNDS = {key: row for key, row in BAD_FILES.items() if row[0].startswith("a.")}


@pytest.mark.parametrize(("name", "make", "message"), BAD_SOUNDS.values(), ids=BAD_SOUNDS)
def test_reading_a_bad_file_raises_audio_error(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(AudioError, match=message):
        reading.read(tmp_path / name, RATE)


def test_reading_a_folder_raises_audio_error(tmp_path):
    with pytest.raises(AudioError, match="is a folder"):
        reading.read(tmp_path, RATE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--scene", "--timestamps"])
@pytest.mark.parametrize(("name", "make"), GOOD_FILES.values(), ids=GOOD_FILES)
def test_an_unusual_file_gives_finite_numbers(embed_audio, tmp_path, name, make, kind):
    make(tmp_path / name)
    result = embed_audio(name, kind)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "a.npz") as archive:
        assert np.isfinite(archive["embedding"]).all()
        assert archive["embedding"].dtype == np.float32


BAD_OPTIONS = {
    "unknown layer": ({"layer": "attention"}, "layer='attention' is unknown; choose from .*features"),
    "layer out of range": ({"layer": "99"}, "layer='99' is unknown; choose from"),
    "layer below range": ({"layer": "-99"}, "layer='-99' is unknown; choose from"),
    "unknown variant": ({"variant": "mn99"}, "variant='mn99' is unknown .*mn10_as"),
    "unknown pool": ({"pool": "sum"}, "pool='sum' is unknown; choose one of mean"),
    "unknown framing": ({"framing": "both"}, "framing='both' is unknown; choose one of windowed"),
    "unknown precision": ({"precision": "float8"}, "precision='float8' is unknown; choose one of float32"),
    "hop of 0": ({"hop_ms": 0.0}, "hop_ms=0.0"),
    "negative hop": ({"hop_ms": -50.0}, "hop_ms=-50.0"),
    "hop that is no number": ({"hop_ms": float("nan")}, "hop_ms=nan"),
    "window of 0": ({"window_ms": [0.0]}, "window_ms=0.0"),
    "window that is no number": ({"window_ms": [float("inf")]}, "window_ms=inf"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_raises_option_error(options, message):
    with pytest.raises(OptionError, match=message):
        efficientat.load_model(**{"variant": "mn01_as", "pretrained": False} | options)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_ends_the_command_with_2(embed_audio, audio_file, options, message):
    arguments = [
        f"--{name.replace('_', '-')}={value[0] if isinstance(value, list) else value}"
        for name, value in options.items()
    ]
    result = embed_audio(audio_file(), *arguments)
    assert result.exit_code == 2
    with pytest.raises(OptionError, match=message):
        raise OptionError(result.stderr)


@pytest.mark.slow
def test_a_window_longer_than_the_model_takes_says_what_it_takes():
    with pytest.raises(OptionError, match=r"window_ms=11000\.0 is outside what passt/base takes; choose 1\d\d"):
        passt.load_model(window_ms=11_000, pretrained=False)


class Code:
    """Would make a folder if a reader ran what it pickles to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def other_network(path: Path) -> None:
    torch.save(efficientat.load_model(variant="mn02_as", pretrained=False).trunk.state_dict(), path)


BAD_WEIGHTS = {
    "missing": (lambda path: None, "no such file"),
    "another network": (other_network, "does not fit the variant that was chosen, but mn02_as"),
    "cut short": (cut(other_network, 0.5), "damaged or cut short"),
    "empty": (content(b""), "empty"),
    "text": (content(b"text"), "not a checkpoint"),
    "code": (lambda path: torch.save({"a": Code(path.with_name("run"))}, path), "refused: the file holds code"),
    "plain pickle of code": (lambda path: path.write_bytes(pickle.dumps(Code(path.with_name("run")))), "not a checkp"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights_raise_weights_error_and_run_no_code(tmp_path, make, message):
    make(tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=message):
        efficientat.load_model(tmp_path / "net.pt", variant="mn01_as")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("make", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_weights_end_the_command_with_1(embed_audio, audio_file, tmp_path, make, message):
    make(tmp_path / "net.pt")
    result = embed_audio(audio_file(), "--weights", "net.pt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: net.pt")
    with pytest.raises(WeightsError, match=message):
        raise WeightsError(result.stderr)
    assert not (tmp_path / "run").exists()
