"""Encoders of Hugging Face from the command line, by a folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from hear_transformers import OPEN_FAMILIES, hf
from tests.helpers.encoders import encoder, own_code

pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
pytestmark = pytest.mark.slow  # a package beside which ours is tested


@pytest.fixture
def embed(installed_command, audio_file, tmp_path, monkeypatch):
    """Run `embed-audio` in a folder with two clips of unequal length."""
    monkeypatch.chdir(tmp_path)
    audio_file("clips/a.wav", seconds=0.7, sample_rate=16_000)
    audio_file("clips/b.wav", seconds=1.2, sample_rate=16_000)
    return lambda *arguments: installed_command("embed-audio")("clips", *arguments, "--out", "out")


def read(path: str) -> tuple[np.ndarray, dict]:
    with np.load(path) as archive:
        return archive["embedding"], json.loads(str(archive["provenance"]))


def test_files_are_embedded_from_a_layer_of_a_folder(embed, tmp_path):
    result = embed("--model", "hf", "--variant", encoder("hubert"), "--layer", "1", "--pool", "meanstd")
    assert result.exit_code == 0, result.output
    embedding, provenance = read("out/a.npz")
    alone = hf.load_model(encoder("hubert"), layer=1, pool="meanstd").encode(tmp_path / "clips" / "a.wav")
    np.testing.assert_allclose(embedding, alone, rtol=0, atol=1e-5)
    assert provenance["variant"] == "hubert"
    assert provenance["scene"]["layers"] == ["1"]
    assert len(provenance["weights_sha256"]) == 64


def test_a_second_run_keeps_what_is_there(embed):
    arguments = ("--model", "hf", "--variant", encoder("whisper"), "--timestamps")
    assert embed(*arguments).exit_code == 0
    assert "0 written, 2 skipped" in embed(*arguments).stdout


def test_a_folder_is_known_by_its_configuration(embed):
    assert embed("--weights", encoder("wavlm")).exit_code == 0
    assert read("out/b.npz")[1]["family"] == "hf"


def test_several_models_have_a_folder_each(embed):
    models = [word for name in ("hubert", "ast") for word in ("--model", f"hf/{encoder(name)}")]
    assert embed(*models, "--model", "tiny").exit_code == 0
    folders = sorted(path.name for path in Path("out").iterdir() if path.is_dir())
    assert folders == ["model=hf-ast", "model=hf-hubert", "model=tiny-tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "nowhere"], "variant='nowhere' is neither a folder nor the name of a repository"),
        ([], "model='hf' stands for any audio encoder of Hugging Face; give variant"),
        (["--variant", "HUBERT", "--layer", "4"], "layer='4' is unknown; choose from 0..3"),
        (["--variant", "HUBERT", "--labels"], "layer='logits' is unknown; choose from 0..3"),
        (["--variant", "HUBERT", "--normalisation", "0,1"], "option 'normalisation' is unknown to hf"),
        (["--variant", "clips"], "clips: a folder without config.json holds no encoder of Hugging Face"),
    ],
)
def test_what_cannot_be_done_is_said(embed, arguments, message):
    result = embed("--model", "hf", *(encoder("hubert") if word == "HUBERT" else word for word in arguments))
    assert result.exit_code == 2 if "config.json" not in message else 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


# Code beside the weights


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    return own_code(tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore:own has no preprocessor_config.json")
def test_code_beside_weights_is_run_only_if_trusted(embed, own):
    refused = embed("--model", "hf", "--variant", own)
    assert refused.exit_code == 2
    assert "read it, then give --trust-remote-code" in refused.stderr
    assert embed("--model", "hf", "--variant", own, "--trust-remote-code").exit_code == 0
    assert len(read("out/a.npz")[1]["remote_code"]) == 64


@pytest.mark.filterwarnings("ignore:own has no preprocessor_config.json")
def test_a_probe_does_not_hand_trust_on(labelled, own, installed_command):
    pytest.importorskip("sklearn")
    model = ("--model", "hf", "--weights", own, "--trust-remote-code")
    made = installed_command("hear-transformers")("probe", "clips", *model, "--out", "probe", "--folds", "2")
    assert made.exit_code == 0, made.output
    classify = ("clips", "--probe", "probe", "--out", "labels.csv")
    refused = installed_command("embed-audio")(*classify)
    assert refused.exit_code == 2
    assert "--trust-remote-code" in refused.stderr
    assert installed_command("embed-audio")(*classify, "--trust-remote-code").exit_code == 0


@pytest.mark.filterwarnings("ignore:own has no preprocessor_config.json")
def test_a_search_asks_for_trust_again(embed, own, installed_command):
    search = installed_command("hear-transformers")
    embed("--model", "hf", "--variant", own, "--trust-remote-code")
    query = ("search", "out", "clips/a.wav", "--weights", own)
    assert "--trust-remote-code" in search(*query).stderr
    found = search(*query, "--trust-remote-code")
    assert found.exit_code == 0, found.output
    assert "1.000" in found.stdout.splitlines()[2]


# Descriptions


def test_info_describes_a_folder(installed_command):
    text = installed_command("hear-transformers")("info", "hf", encoder("ast")).stdout
    assert "variant: ast\n" in text
    assert "network  ASTModel\n" in text
    assert "\n2         32    12     100     window\n" in text


def test_info_and_list_say_what_it_takes_without_one(installed_command):
    about = OPEN_FAMILIES["hf"]
    assert about in installed_command("hear-transformers")("info", "hf").stdout
    assert f"\nhf: {about}\n" in installed_command("hear-transformers")("list").stdout
    assert installed_command("hear-transformers")("list", "hf").stdout == f"hf: {about}\n"
    assert installed_command("hear-transformers")("list", "hf", "--json").stdout == "[]\n"


def test_download_prints_where_it_is(installed_command):
    result = installed_command("hear-transformers")("download", "hf", encoder("hubert"))
    assert result.stdout == f"{encoder('hubert')}\n"
