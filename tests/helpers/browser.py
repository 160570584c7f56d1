"""Chromium without a window, driven through its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60


class Browser:
    """A page in a browser; errors of the console and requests are noted from the start."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.n_sent = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.n_sent += 1
        self.socket.send(json.dumps({"id": self.n_sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=SECONDS))
            if message.get("id") == self.n_sent:
                assert "error" not in message, message
                return message["result"]
            self.note(message)

    def note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters))
        else:
            level = parameters.get("entry", {}).get("level") or parameters.get("type")
            if method in ("Runtime.consoleAPICalled", "Log.entryAdded") and level in ("error", "warning", "assert"):
                self.problems.append(json.dumps(parameters))

    def run(self, script: str) -> Any:
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        until = time.monotonic() + SECONDS
        while not self.run(script):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.05)

    def open(self, page: Path, width: int = 1400, height: int = 900) -> None:
        self.size(width, height)
        self.send("Page.navigate", url=page.absolute().as_uri())
        self.wait("document.readyState === 'complete'")

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser whose profile lies in a folder; skip the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser is installed: {', '.join(NAMES)}")
    connect = pytest.importorskip("websockets.sync.client").connect
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--no-first-run"]
    options += ["--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    with subprocess.Popen(
        [program, *options, "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=os.name != "nt",
    ) as process:
        try:
            port = _port(folder / "DevToolsActivePort")
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
                (page,) = [each for each in json.load(answer) if each["type"] == "page"]
            with connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _port(path: Path) -> int:
    until = time.monotonic() + SECONDS
    while True:
        if path.exists() and (lines := path.read_text(encoding="utf-8").split()):
            return int(lines[0])
        assert time.monotonic() < until, "the browser did not start"
        time.sleep(0.1)
