"""URL -> file: resumed where a server allows it, tried again after failures that pass, never trusted.

A download goes to a file of its own, which is kept when it breaks off. What is needed to go on with it stands beside
it: its address, the server's name for this content, its length. The caller verifies the whole.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import urlsplit

from ..errors import WeightsError
from ..files import parse_json

if TYPE_CHECKING:
    import requests

TIMEOUT_S: tuple[float, float] = (10.0, 30.0)
"""Limits for a server to accept a connection, and to send the next bytes."""

RETRY_PAUSES_S: tuple[float, ...] = (1.0, 4.0)
"""Pauses before the second, third, ... attempt that brings nothing new."""

MOST_ATTEMPTS = 20
"""Most attempts, even where each brings something new."""

LONGEST_PAUSE_S = 30.0
"""Longest pause that a server may ask for; it is not asked again if it wants more."""

CHUNK_BYTES = 2**14
"""Bytes per write: few, so that a slow server is noticed."""

SLOWEST_BYTES_PER_S = 1_000
"""A connection that is slower for `SLOW_AFTER_S` is given up, and the download resumed with a new one."""

SLOW_AFTER_S = 30.0

MOST_BYTES = 2**32
"""Largest file that is taken from a server that announces no length; the largest published one has 1.2 GB."""

MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""

CONTENT_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<total>\d+|\*)")


class UnreachableError(WeightsError):
    """A host cannot be reached at all: there is no network, or no way to it."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} cannot be reached")
        self.host = host


class _Again(Exception):
    """An attempt failed in a way that may pass, after a pause in s that the server asks for."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _TooLong(Exception):
    """More bytes came than may come."""


class Download:
    """One file from one address.

    Parameters
    ----------
    url : of the file
    part : what is downloaded so far; its folder exists, and nobody else writes there
    size : in bytes, None if it is not known
    has_hash : True if the caller can verify the whole by a hash, so that a rest may be fetched from a server that does
        not name its content
    progress : show a bar on stderr
    """

    def __init__(self, url: str, part: Path, size: int | None, *, has_hash: bool, progress: bool) -> None:
        self.url = url
        self.host = urlsplit(url).hostname or url
        self.part = part
        self.notes = part.with_name(f"{part.name}.json")
        self.size = size
        self.has_hash = has_hash
        self.progress = progress
        self.was_resumed = False

    def run(self) -> None:
        """Download the file, or the rest of it.

        Raises
        ------
        UnreachableError : there is no connection to the host
        WeightsError : the server refuses, sends another length, or breaks off again and again
        OSError : the file cannot be written
        """
        pauses = list(RETRY_PAUSES_S)
        most = self._held()
        for i in range(MOST_ATTEMPTS):
            try:
                return self._attempt()
            except _Again as failure:
                if self._held() > most:  # it goes forward
                    most, pauses = self._held(), list(RETRY_PAUSES_S)
                if not pauses or i + 1 == MOST_ATTEMPTS:
                    raise WeightsError(f"{self.host}: {failure}") from failure
                time.sleep(max(pauses.pop(0), failure.pause_s))

    def discard(self) -> None:
        """Remove what is downloaded so far."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def _held(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _attempt(self) -> None:
        """Make one request, and write its answer."""
        import requests

        notes = self._read_notes()
        held = self._held() if notes else 0
        if notes and held and held == notes["total"]:  # the process ended before it was verified
            self.was_resumed = True
            return
        headers = {"Accept-Encoding": "identity"}
        if held and notes:
            headers["Range"] = f"bytes={held}-"
            if notes["validator"]:
                headers["If-Range"] = notes["validator"]
        try:
            response = requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise self._no_answer(error) from error
        with response:
            self._check_status(response)
            first, total = self._place(response, held, notes)
            self._check_length(total)
            try:
                self._write(response, first, total)
            except requests.RequestException as error:
                raise _Again(f"the connection broke off after {self._held()} bytes ({_reason(error)})") from error
            except _TooLong as error:
                self.discard()
                failure = _Again if first else WeightsError  # a rest that is too long may be the whole
                raise failure(f"{self.host} sends more than {error} bytes") from error
        if total is not None and self._held() != total:
            raise _Again(f"the connection broke off after {self._held()} of {total} bytes")

    def _no_answer(self, error: requests.RequestException) -> Exception:
        """Return what it means that no answer came."""
        import requests
        import urllib3

        cause = getattr(error.args[0], "reason", None) if error.args else None
        offline = isinstance(cause, urllib3.exceptions.NewConnectionError)
        if offline or isinstance(error, (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError)):
            return UnreachableError(self.host)
        if isinstance(error, (requests.exceptions.SSLError, requests.exceptions.TooManyRedirects)) or not isinstance(
            error, (requests.ConnectionError, requests.Timeout)
        ):
            return WeightsError(f"{self.host}: {_reason(error)}")
        return _Again(_reason(error))

    def _check_status(self, response: requests.Response) -> None:
        """Raise where an answer is none, or is no file."""
        status = response.status_code
        if self.url.startswith("https:") and not response.url.startswith("https:"):
            raise WeightsError(f"{self.host} leads to {response.url}, which is not encrypted")
        if status == 416:  # what is here is longer than the file, so it is another one
            self.discard()
            raise _Again("the server holds another file than the one that was begun")
        if status in MAY_PASS:
            asked = response.headers.get("Retry-After", "")
            pause_s = float(asked) if asked.isdecimal() else 0.0
            if pause_s > LONGEST_PAUSE_S:
                raise WeightsError(f"{self.host} answers {status} {response.reason}; try again in {pause_s:.0f} s")
            raise _Again(f"{status} {response.reason}", pause_s)
        if status not in (200, 206):
            raise WeightsError(f"{self.host} answers {status} {response.reason}")

    def _place(self, response: requests.Response, held: int, notes: dict[str, Any] | None) -> tuple[int, int | None]:
        """Return where the bytes of an answer belong, and the length of the whole file, None if it is not known."""
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        length = response.headers.get("Content-Length", "")
        validator = _validator(response)
        if response.status_code == 200:
            total = int(length) if length.isdecimal() and not encoded else None
            self._write_notes(None if encoded else validator, total, keep=not encoded)
            return 0, total
        found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        known = notes["total"] if notes else None
        total = int(found["total"]) if found and found["total"] != "*" else known
        same = notes is not None and (not validator or not notes["validator"] or validator == notes["validator"])
        if encoded or not found or not held or int(found["first"]) != held or not same or known not in (None, total):
            self.discard()
            raise _Again("the server sends a part of another file")
        self.was_resumed = True
        return held, total

    def _check_length(self, total: int | None) -> None:
        if total is not None and (total > MOST_BYTES or self.size not in (None, total)):
            self.discard()
            raise WeightsError(f"{self.host} sends {total} bytes, expected {self.size or f'at most {MOST_BYTES}'}")

    def _write(self, response: requests.Response, first: int, total: int | None) -> None:
        """Write an answer to its place."""
        from tqdm import tqdm

        most = total or self.size or MOST_BYTES
        name = self.part.name.strip(".").removesuffix(".part")
        options = {"total": total, "initial": first, "desc": name, "unit": "B", "unit_scale": True}
        with (
            self.part.open("ab" if first else "wb") as file,
            tqdm(**options, disable=not self.progress, file=sys.stderr) as bar,
        ):
            since, fresh = time.monotonic(), 0
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
                first += len(chunk)
                fresh += len(chunk)
                if first > most:
                    raise _TooLong(most)
                now = time.monotonic()
                if now - since > SLOW_AFTER_S:
                    if fresh < SLOWEST_BYTES_PER_S * (now - since):
                        raise _Again(f"fewer than {SLOWEST_BYTES_PER_S} bytes a second arrive")
                    since, fresh = now, 0

    def _read_notes(self) -> dict[str, Any] | None:
        """Return what is known of the part, None if it must not be gone on with."""
        try:
            notes = parse_json(self.notes.read_text(encoding="utf-8"))
            validator, total = notes["validator"] or "", notes["total"]
            sound = isinstance(validator, str) and validator.isprintable() and isinstance(total, int | None)
            usable = sound and notes["url"] == self.url and (validator or self.has_hash)
            return {"validator": validator, "total": total} if usable else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _write_notes(self, validator: str | None, total: int | None, *, keep: bool) -> None:
        """Write what is known of the part that begins, or nothing where it cannot be gone on with."""
        self.part.unlink(missing_ok=True)  # of another content
        if keep:
            notes = {"url": self.url, "validator": validator, "total": total}
            self.notes.write_text(json.dumps(notes), encoding="utf-8")
        else:
            self.notes.unlink(missing_ok=True)


def _validator(response: requests.Response) -> str | None:
    """Return the server's name for this content: a strong ETag, else the date of its last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _reason(error: BaseException) -> str:
    """Return the innermost reason of an error of requests, whose own text repeats addresses and objects."""
    while inner := next((part for part in (getattr(error, "reason", None), *error.args) if _is_error(part)), None):
        error = inner
    text = str(error).rpartition(">: ")[2]
    return re.sub(r"^[\w.]+\(host='[^']*', port=\d+\): ", "", text)


def _is_error(part: object) -> TypeGuard[BaseException]:
    return isinstance(part, BaseException)
