"""The papers' claims at a small scale: what the tables say, and what a second call does not do again."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from hear_transformers.benchmarks import claims
from hear_transformers.benchmarks.claims import SYSTEMS, Claims, Result, Tagging
from hear_transformers.training.corpus.stream import FAMILIES

CPU = torch.device("cpu")
RESULT = Result("AST", 0, 400, 1_000_000, 360_000_000, 80.0, 0.5, 0.1, 0.2, 0.3)


def results(seeds: int, **better: float) -> list[Result]:
    """Return rows of all systems; `better` adds to the precision of some, 0.01 more for every seed."""
    return [
        replace(
            RESULT,
            system=name,
            seed=seed,
            mean_average_precision=0.5 + 0.1 * seed + better.get(name, 0.0) * (1 + 0.1 * seed),
        )
        for seed in range(seeds)
        for name in SYSTEMS
    ]


def test_pairs_are_compared_seed_by_seed():
    *_, mast, atgnn = claims.lines(results(3, MAST=0.05))
    assert mast == "| MAST, than AST | 0.055 [0.043, 0.067] | 0.000 [0.000, 0.000] |"
    assert atgnn.startswith("| ATGNN, than ATGNN, no label graphs | 0.000 [0.000, 0.000] |")


def test_a_network_has_a_row_with_what_it_costs():
    table = list(claims.lines(results(2)))
    assert table[2] == "| AST | 1,000,000 | 0.36 | 0.20 | 0.550 [-0.085, 1.185] | 0.100, 0.200, 0.300 |"


def test_one_seed_has_no_interval():
    assert claims.with_interval([0.5]) == "0.500"


def test_rows_come_back_from_their_file(tmp_path):
    claims.write(tmp_path / "results.csv", results(2))
    assert claims.read(tmp_path / "results.csv") == results(2)
    assert claims.read(tmp_path / "none.csv") == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_network_hears_two_seconds_and_has_its_stages(name):
    system = SYSTEMS[name]
    trunk = system.family.network(**system.variant.network).eval()
    assert Tagging(trunk).logits(torch.zeros(2, 128, 200)).shape == (2, len(FAMILIES))
    means = claims._means(trunk, torch.zeros(1, 128, 501), system.stages)
    assert len(means) == len(system.stages) == len(claims.NMI)
    assert all(mean.ndim == 1 for mean in means.values())


def test_a_family_that_sounds_at_any_time_is_a_label():
    (batch,) = claims.Batches(CPU, 1)(seed=0, n=1)
    mels, truths = batch
    assert mels.shape == (claims.BATCH, 128, 200)
    assert truths.shape == (claims.BATCH, len(FAMILIES))
    assert truths.any(1).all()
    assert (truths.sum(1) > 1).any()


def test_all_networks_of_a_seed_see_the_same_clips(tmp_path, monkeypatch):
    """The second run of a seed ends as the first, and networks differ between seeds."""

    def few(seed: int, n: int):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n):
            yield torch.randn(2, 128, 200, generator=generator), torch.rand(2, len(FAMILIES), generator=generator) < 0.5

    monkeypatch.setattr(claims, "SYSTEMS", {"AST": SYSTEMS["AST"]})
    monkeypatch.setattr(Claims, "_clusters", lambda *_: dict.fromkeys(claims.NMI, 0.0))
    runs = [Claims(2, few, CPU, tmp_path).results(seed)[0].mean_average_precision for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def invoke(*arguments: object):
    return CliRunner().invoke(claims.main, [str(argument) for argument in arguments])


def test_finished_seeds_are_not_trained_again(tmp_path, monkeypatch):
    trained = []

    def result(self, seed: int):
        trained.append(seed)
        return [row for row in results(seed + 1) if row.seed == seed]

    monkeypatch.setattr(Claims, "results", result)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for seeds in (1, 3):
        assert invoke("--out", tmp_path, "--data", tmp_path, "--seeds", seeds).exit_code == 0
    assert trained == [0, 1, 2]
    refused = invoke("--out", tmp_path, "--data", tmp_path, "--steps", 5)
    assert refused.exit_code == 2
    assert "rows of 400 steps; give --steps 400 or another --out" in refused.output
