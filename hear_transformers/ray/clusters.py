"""Ray clusters: how they are reached, and how many actors fit on one."""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError, import_extra

CORES = 4
"""Cores of an actor without a card: more threads help one small network little."""

LOCAL = "local"
"""Address of a cluster that Ray starts on this machine."""

AUTO = "auto"
CURRENT = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
"""Address of the cluster of this machine, and where Ray has written it."""

REACHED_SECONDS = 5.0
"""Time in which a cluster answers."""


def start(address: str | None) -> None:
    """Connect to a Ray cluster, as `embed` does by itself.

    Parameters
    ----------
    address : of the cluster, "auto" for one that runs on this machine; None for that of the environment variable
        ``RAY_ADDRESS``, as jobs of a cluster have it, else one that is started here and ends with this process

    Raises
    ------
    OptionError : Ray is not installed, or there is no cluster

    Examples
    --------
    >>> from hear_transformers import ray  # doctest: +SKIP
    >>> ray.start("auto")  # doctest: +SKIP
    """
    ray = import_extra("embedding on a cluster", "ray.data", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of every cluster
    # Without an address, Ray would look for clusters that were here once, and wait for each.
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    started: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    _check_reached(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", ignore_reinit_error=True, **started)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OptionError(f"address={address!r}: no Ray cluster is reached there ({error})") from error
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its files get all of it, and what fails is told in other words
            handler.setLevel(logging.CRITICAL)


def _check_reached(address: str) -> None:
    """Raise OptionError if nothing answers at an address, for which Ray itself would wait for a quarter of an hour."""
    place = address.rpartition("://")[2]
    if address == AUTO and CURRENT.is_file():
        place = CURRENT.read_text().strip()
    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_SECONDS).close()
    except OSError as error:
        stale = f"; {CURRENT} names it, of a cluster that is gone" if address == AUTO else ""
        raise OptionError(f"address={address!r}: no Ray cluster answers at {place} ({error}){stale}") from error


@dataclass(frozen=True, slots=True)
class Crew:
    """The actors of a run.

    Attributes
    ----------
    actors : how many
    cores : that each computes and decodes with
    cpus : that each asks Ray for: less than `cores`, so that on every machine one is left for Ray Data
    gpus : that each asks Ray for
    """

    actors: int
    cores: int
    cpus: float
    gpus: int = 0

    @staticmethod
    def of(nodes: Sequence[Mapping[str, Any]], device: str, actors: int | None, cores: int | None) -> Crew:
        """Return the actors that fit on a cluster.

        Parameters
        ----------
        nodes : of the cluster, as `ray.nodes` returns them
        device : "cuda", "cpu", or "auto" for cards if there are any
        actors : None for as many as fit
        cores : of each; None for those of a machine in equal shares to its cards, or `CORES`

        Raises
        ------
        OptionError : there are no cards, or the actors would take all CPUs
        """
        if device not in ("auto", "cpu", "cuda"):
            raise OptionError(f"device={device!r} is one of a machine; choose auto, cuda or cpu for a cluster")
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        sizes = [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in machines if each.get("CPU", 0) >= 2]
        cards = sum(gpus for _, gpus in sizes)
        if device == "cuda" and not cards:
            raise OptionError(
                "device='cuda': the cluster has no card on a machine of two CPUs or more; choose auto or cpu"
            )
        on_cards = bool(cards) and device != "cpu"
        if on_cards:
            sizes = [(cpus, gpus) for cpus, gpus in sizes if gpus]
            cores = cores or min(max(1, cpus // gpus) for cpus, gpus in sizes)
            places = [min(gpus, cpus // cores) for cpus, gpus in sizes]
        else:
            cores = cores or max(1, min([CORES, *(cpus for cpus, _ in sizes)]))
            places = [cpus // cores for cpus, _ in sizes]
        most = sum(places)
        if not most or (actors is not None and not 1 <= actors <= most):
            asked = "an actor" if actors is None else f"actors={actors}"
            advice = f"give 1 to {most}" if most else "give fewer cores, or a machine of two CPUs or more"
            raise OptionError(
                f"{asked} of {cores} cores each: on {len(machines)} machines of the cluster {most} fit; {advice}. "
                "Actors that take all CPUs leave none to Ray Data, and the run would wait for ever (ray#44687)"
            )
        shares = [(cpus - 1) / n for (cpus, _), n in zip(sizes, places, strict=True) if n]
        return Crew(actors or most, cores, math.floor(100 * min(shares)) / 100, int(on_cards))

    @property
    def device(self) -> str:
        """Where each computes."""
        return "cuda" if self.gpus else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """What each asks Ray for."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}
