"""Search by words in a table of CLAP's embeddings, beside transformers: a tiny model with random weights."""

import json
import sys

import numpy as np
import pytest
import soundfile
import torch

from hear_transformers.errors import OptionError, WeightsError
from hear_transformers.explore import texts
from hear_transformers.explore.reading import read
from hear_transformers.files import sha256_of
from tests.conftest import installed
from tests.helpers.tables_of_embeddings import write_table

pytestmark = pytest.mark.slow  # transformers takes seconds to import

RATE = 48_000
AUDIO = {"patch_embeds_hidden_size": 16, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 32}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDS = ("a dog barking", "rain on leaves")


def write_tokenizer(folder) -> None:
    """Write a tokenizer of letters in the files of RoBERTa's."""
    letters = (*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "\u0120")  # which stands for a space
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Make a tiny ClapModel and the folder that it is published in."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clap")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = {**TEXT, "max_position_embeddings": 40}
        config = transformers.ClapConfig(
            audio_config={**AUDIO, "hidden_size": 128}, text_config=text, projection_dim=24
        )
        model = transformers.ClapModel(config).eval()
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    write_tokenizer(folder)
    return transformers, model, folder


@pytest.fixture(scope="module")
def table(peer, tmp_path_factory):
    """Embed three clips as they are, and one in segments."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for i in range(3):
        noise = rng.normal(size=RATE * (i + 1)) * np.linspace(0, 0.2, RATE * (i + 1))
        soundfile.write(folder / f"{i}.wav", noise, RATE, subtype="FLOAT")
    embed, options = installed("embed-audio"), ("--model", "clap", "--weights", peer[2], "--quiet", "--num-workers", 0)
    for out, more in (
        ("scenes.parquet", ()),
        ("segments.parquet", ("--segment", 1)),
        ("norm.parquet", ("--layer", "norm")),
    ):
        result = embed(folder, "--out", folder / out, *options, *more)
        assert result.exit_code == 0, result.output
    return folder / "scenes.parquet"


@pytest.fixture
def search(installed_command):
    command = installed_command("hear-transformers")
    return lambda *arguments: command("search", *arguments)


@torch.no_grad()
def theirs(peer, clips):
    """Compute the cosines of `WORDS` and clips with transformers: (texts, clips)."""
    transformers, model, folder = peer
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    audio = model.get_audio_features(**extractor(clips, sampling_rate=RATE, return_tensors="pt"))
    words = [model.get_text_features(**tokenizer(text, return_tensors="pt")) for text in WORDS]
    audio, *words = (getattr(each, "pooler_output", each) for each in (audio, *words))  # tensors up to transformers 4
    return (torch.cat(words) @ audio.T).numpy()


def test_cosines_are_those_of_transformers(peer, table, search):
    clips = [soundfile.read(table.parent / f"{i}.wav")[0] for i in range(3)]
    expected = theirs(peer, clips)
    result = search(table, *WORDS, "--weights", peer[2], "--json")
    assert result.exit_code == 0, result.output
    for words, line, cosines in zip(WORDS, result.stdout.splitlines(), expected, strict=True):
        answer = json.loads(line)
        assert answer["query"] == words
        assert [match["row"] for match in answer["matches"]] == np.argsort(-cosines).tolist()
        np.testing.assert_allclose([match["cosine"] for match in answer["matches"]], -np.sort(-cosines), atol=1e-5)


def test_segments_are_found_by_words(peer, table, search):
    result = search(table.with_name("segments.parquet"), WORDS[0], "--weights", peer[2], "-k", 2)
    assert result.exit_code == 0, result.output
    assert WORDS[0] in result.stdout


def refused(result, message: str) -> None:
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_other_tables_are_refused(peer, table, search, tmp_path):
    other = write_table(tmp_path / "tiny.parquet", np.eye(3))
    refused(
        search(other, WORDS[0]), "'a dog barking' is no file, and as words it needs a table of CLAP's layer projection"
    )
    refused(search(other, WORDS[0]), "was made by tiny/tiny: give an audio file, or embed with --model clap")
    refused(search(table.with_name("norm.parquet"), WORDS[0], "--weights", peer[2]), "clap-htsat-unfused, layer norm:")


def test_words_and_sounds_are_asked_apart(table, search):
    refused(search(table, WORDS[0], "0"), "'a dog barking' is no file, and words are compared otherwise than sounds")


def test_other_weights_are_refused(peer, table, tmp_path):
    state_dict = torch.load(peer[2] / "pytorch_model.bin", weights_only=True)
    torch.save({**state_dict, "logit_scale_a": torch.zeros(())}, tmp_path / "other.bin")
    with pytest.raises(WeightsError, match="was made with weights of sha256"):
        texts.embed(read(table), WORDS, str(tmp_path / "other.bin"))


def test_a_file_without_texts_is_refused(peer, table, tmp_path):
    state_dict = torch.load(peer[2] / "pytorch_model.bin", weights_only=True)
    path = tmp_path / "pytorch_model.bin"
    torch.save({name: each for name, each in state_dict.items() if not name.startswith("text_")}, path)
    (tmp_path / "config.json").write_text((peer[2] / "config.json").read_text())
    write_tokenizer(tmp_path)
    rows = read(table)
    rows.provenance["weights_sha256"] = sha256_of(path)
    with pytest.raises(WeightsError, match=r"holds no text tower \(text_model\., text_projection\.\)"):
        texts.embed(rows, WORDS, str(path))


def test_the_tokenizer_is_found_in_the_cache_or_said_to_be_missing(peer, table, tmp_path, monkeypatch):
    weights = tmp_path / "weights" / "pytorch_model.bin"
    weights.parent.mkdir()
    weights.write_bytes((peer[2] / "pytorch_model.bin").read_bytes())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(OptionError, match=r"hf download laion/clap-htsat-unfused --exclude"):
        texts.embed(read(table), WORDS, str(weights))
    snapshot = tmp_path / "hub" / "models--laion--clap-htsat-unfused" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text((peer[2] / "config.json").read_text())
    write_tokenizer(snapshot)
    found = texts.embed(read(table), WORDS, str(weights))
    np.testing.assert_array_equal(found, texts.embed(read(table), WORDS, str(peer[2])))


def test_a_text_that_is_too_long_is_refused(peer, table):
    with pytest.raises(OptionError, match=r"has 47 tokens, and the text tower takes 38; shorten it"):
        texts.embed(read(table), ["a dog " * 7 + "abc"], str(peer[2]))


def test_the_extra_is_named(peer, table, search, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(search(table, WORDS[0], "--weights", peer[2]), "pip install 'hear_transformers[clap-text]'")


def test_global_state_stays_as_it_is(peer, table):
    before = torch.get_rng_state()
    texts.embed(read(table), WORDS, str(peer[2]))
    torch.testing.assert_close(torch.get_rng_state(), before)


@pytest.mark.parametrize("query", ["https://a.org/dog", "7", "dog.wav", "DOG.MP3"])
def test_names_are_no_words(query):
    assert not texts.are_words(query)


@pytest.mark.parametrize("query", ["dog barking", "a: b", "dog", "3 dogs"])
def test_what_is_no_file_is_words(query):
    assert texts.are_words(query)
