"""Names of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import OptionError, did_you_mean

KINDS = ("cuda", "mps", "cpu")
"""Kinds of devices, in the order that "auto" prefers."""


ALL = "all"
"""Stands for every card."""


def pick_devices(names: str | Sequence[str]) -> list[str]:
    """Return the devices of a list such as "cuda:0,cuda:1", every card for "all".

    Of several none is touched, since a process that has used a card keeps memory there; `pick_device` does that where
    it is used.

    Raises
    ------
    OptionError : a device is not here, or there are no cards
    """
    given = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    cards = [f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    if given == [ALL] and not cards:
        raise OptionError("device='all' stands for all cards of CUDA, and there are none here; choose auto or cpu")
    if given == [ALL]:
        return cards
    for name in given if len(given) > 1 else ():
        if name not in cards:
            pick_device(name)
    return given


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, the fastest for "auto"; raise OptionError if it cannot be used here."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    known = [kind for kind in KINDS if usable[kind]]
    if name == "auto":
        return torch.device(known[0])
    try:
        if not isinstance(name, (str, torch.device)):
            raise TypeError("not a name")
        device = torch.device(name)
        if device.type not in known:
            raise RuntimeError("not there")
        torch.zeros(1, device=device)  # raises if the number of the device is too high
    except (RuntimeError, TypeError) as error:
        cards = torch.cuda.device_count() if usable["cuda"] else 0
        known[:0] = [f"cuda:{i}" for i in range(cards) if cards > 1]
        given = str(name) if isinstance(name, torch.device) else name
        choices = did_you_mean(given, ["auto", *known], of="choose one of")
        raise OptionError(f"device={given!r} cannot be used here; {choices}") from error
    return device
