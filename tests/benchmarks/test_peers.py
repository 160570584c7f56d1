"""The benchmark beside other packages: equal numbers at equal precision first, then a table."""

import pytest
import torch
from click import ClickException
from click.testing import CliRunner

from hear_transformers import efficientat, hear
from hear_transformers.benchmarks import bulk, card, peers, tables
from hear_transformers.benchmarks.peers import Peer, Workload

SECONDS = {"theirs": 0.5, "float32": 0.25, "bfloat16": 0.0125}


class Ours(Peer):
    """Another package that computes what ours does, with an error of `scale`."""

    workloads = (Workload("scene", "mn01_as", 2, 0.5), Workload("timestamp", "mn01_as", 1, 0.1))
    family = efficientat.FAMILY

    def __init__(self, device: str, scale: float = 1.0) -> None:
        self.model = efficientat.load_model("", "mn01_as", pretrained=False).trunk
        self.scale = scale
        self.allowed: list[bool] = []

    def embed(self, work: Workload, audio: torch.Tensor) -> torch.Tensor:
        self.allowed.append(torch.backends.cudnn.allow_tf32)
        return self.scale * peers.call_hear(hear, work, self.ours(work.variant), audio)

    def row(self, name: str) -> list[str]:
        return [name]


class Wrong(Ours):
    """Another package that computes something else."""

    def row(self, name: str) -> list[str]:
        raise ClickException("numbers differ")


@pytest.fixture
def _measured(monkeypatch):
    monkeypatch.setattr(peers, "time_in_turns", lambda functions, repeats: {name: SECONDS[name] for name in functions})
    monkeypatch.setattr(peers, "measure_gemm", lambda precision, device: 1e12)


@pytest.mark.usefixtures("_measured")
def test_bfloat16_is_left_out_where_the_device_has_no_instructions_for_it(monkeypatch):
    monkeypatch.setattr(peers, "has_instructions", lambda precision, device: precision == "float32")
    row = dict(zip(peers.COLUMNS, peers.compare(Ours.workloads[0], "other", Ours("cpu"), 1, "cpu"), strict=True))
    assert (row["float32"], row["bfloat16 ms"], row["bfloat16"]) == ("2.00x", "", "")
    assert row["of GEMM peak"].count("%") == 1


@pytest.mark.usefixtures("_measured")
@pytest.mark.parametrize("work", Ours.workloads, ids=lambda work: work.kind)
def test_a_row_has_times_in_ms_and_ratios(work, monkeypatch):
    monkeypatch.setattr(peers, "has_instructions", lambda precision, device: True)
    row = dict(zip(peers.COLUMNS, peers.compare(work, "other", Ours("cpu"), 1, "cpu"), strict=True))
    assert row.pop("of GEMM peak").count("%") == 2
    assert row == {
        "task": f"{work.kind}, {work.clips} x {work.seconds:g} s",
        "model": "`efficientat/mn01_as`",
        "beside": "other",
        "theirs ms": "500",
        "ours ms": "250",
        "float32": "2.00x",
        "error": "0.0e+00",
        "bfloat16 ms": "12.5",
        "bfloat16": "40.00x",
    }


@pytest.mark.usefixtures("_measured")
def test_peers_compute_float32_exactly_and_the_flag_is_put_back():
    before = torch.backends.cudnn.allow_tf32
    peer = Ours("cpu")
    peers.compare(Ours.workloads[0], "other", peer, 1, "cpu")
    assert not any(peer.allowed)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.usefixtures("_measured")
@pytest.mark.parametrize("scale", [1.0003, 0.0, float("nan")])
def test_other_numbers_are_refused(scale):
    with pytest.raises(Exception, match="numbers differ by"):
        peers.compare(Ours.workloads[0], "other", Ours("cpu", scale), 1, "cpu")


def test_what_is_not_installed_or_differs_is_named_and_the_rest_is_compared(monkeypatch):
    def missing(device: str):
        raise ModuleNotFoundError("No module named 'other'")

    monkeypatch.setattr(peers, "PEERS", {"missing": missing, "wrong": Wrong, "same": Ours})
    monkeypatch.setattr(peers, "compare", lambda work, name, peer, repeats, device: peer.row(name))
    result = CliRunner().invoke(peers.main, [])
    assert result.exit_code == 1
    assert result.output.count("| same |") == len(Ours.workloads)
    assert (
        "Error: missing is left out: No module named 'other'; wrong: numbers differ; wrong: numbers differ"
        in result.output
    )


def test_what_no_extra_installs_is_compared_if_it_is_named(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"avex": Ours, "same": Ours})
    monkeypatch.setattr(peers, "compare", lambda work, name, peer, repeats, device: peer.row(name))
    default, named = (CliRunner().invoke(peers.main, arguments).output for arguments in ([], ["--peer", "avex"]))
    assert (default.count("| same |"), default.count("| avex |")) == (2, 0)
    assert (named.count("| same |"), named.count("| avex |")) == (0, 2)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_card_the_commands_say_so(monkeypatch, tmp_path, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ours = ([card.main, name] for name in card.main.commands)
    for command in ([peers.main], [bulk.main, "throughput", "--audio", str(tmp_path)], *ours):
        result = CliRunner().invoke(command[0], [*command[1:], "--device", device])
        assert result.exit_code == 1
        assert f"--device {device}: PyTorch {torch.__version__} finds no CUDA device" in result.output


def test_a_table_is_markdown(capsys):
    tables.echo_table(("a", "b"), iter([["1", "2"]]))
    assert capsys.readouterr().out == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
