"""How many actors a cluster takes, and how long files are shared out."""

import math
import socket

import pytest

from hear_transformers.errors import OptionError
from hear_transformers.ray import clusters
from hear_transformers.ray.clusters import Crew
from hear_transformers.ray.pieces import Segments


def machine(cpus, gpus=0, *, alive=True):
    return {"Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}


@pytest.mark.parametrize(
    ("machines", "options", "expected"),
    [
        ([machine(16)], {}, Crew(4, 4, 3.75)),
        ([machine(2), machine(2), machine(2)], {}, Crew(3, 2, 1.0)),
        ([machine(2)], {"cores": 1}, Crew(2, 1, 0.5)),
        ([machine(16, 1), machine(16, 1)], {}, Crew(2, 16, 15.0, 1)),
        ([machine(16, 4), machine(8)], {}, Crew(4, 4, 3.75, 1)),
        ([machine(16, 1)], {"device": "cpu", "actors": 2}, Crew(2, 4, 3.75)),
        ([machine(8), machine(64, alive=False)], {}, Crew(2, 4, 3.5)),
    ],
)
def test_a_crew_fills_the_machines_and_leaves_ray_a_cpu_of_each(machines, options, expected):
    assert Crew.of(machines, **{"device": "auto", "actors": None, "cores": None, **options}) == expected


@pytest.mark.parametrize(
    ("machines", "options", "words"),
    [
        ([machine(4)], {"actors": 2}, "ray#44687"),
        ([machine(1)], {}, "two CPUs"),
        ([machine(4)], {"cores": 8}, "fewer cores"),
        ([machine(4)], {"device": "cuda"}, "no card"),
        ([machine(4)], {"device": "cuda:1"}, "choose auto, cuda or cpu"),
    ],
)
def test_a_crew_that_does_not_fit_is_refused(machines, options, words):
    with pytest.raises(OptionError, match=words):
        Crew.of(machines, **{"device": "auto", "actors": None, "cores": None, **options})


@pytest.mark.parametrize(("length", "hop", "seconds"), [(3.0, 3.0, 7200.0), (3.0, 2.0, 5000.5), (10.0, 7.5, 1900.0)])
def test_pieces_hold_every_segment_once_and_the_last_is_not_short(length, hop, seconds):
    pieces = list(Segments(length, hop, 1).pieces(seconds))

    ends = [start for start, _ in pieces[1:]]
    for (start, end), following in zip(pieces[:-1], ends, strict=True):
        n_segments = (following - start) / hop
        assert n_segments == pytest.approx(round(n_segments))
        assert end == pytest.approx(following - hop + length)
    assert pieces[-1][1] == math.inf
    assert seconds - pieces[-1][0] > 600


def test_an_address_where_nothing_answers_is_an_error_at_once():
    pytest.importorskip("ray.data", reason="the extra ray is not installed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(OptionError, match=f"no Ray cluster answers at {address}"):
            clusters.start(address)


def test_a_cluster_that_is_gone_is_an_error_at_once(tmp_path, monkeypatch):
    pytest.importorskip("ray.data", reason="the extra ray is not installed")
    (tmp_path / "current").write_text("127.0.0.1:1")
    monkeypatch.setattr(clusters, "CURRENT", tmp_path / "current")

    with pytest.raises(OptionError, match="of a cluster that is gone"):
        clusters.start("auto")


def test_a_short_file_is_one_piece():
    assert list(Segments(3.0, 3.0, 1).pieces(900.0)) == [(0.0, math.inf)]
