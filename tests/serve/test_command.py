"""`hear-transformers serve`: options that are wrong, and what it warns of; the server itself is tested by others."""

import socket

import pytest
from click.testing import CliRunner
from hear_transformers.cli import serve as command
from hear_transformers.cli.hear_transformers import main

from hear_transformers.serve import models, running
from hear_transformers.serve.limits import Limits


def serve(*arguments: str):
    return CliRunner().invoke(main, ["serve", *arguments])


@pytest.fixture
def started(monkeypatch, served):
    """Note with what a server would be run, and run none."""
    notes = {}

    def note(service, bound, token, hosts):
        notes.update(limits=service.limits, token=token, hosts=hosts)

    monkeypatch.setattr(models, "load", lambda *given, **rest: notes.update(given=given) or served)
    monkeypatch.setattr(running, "make_server", note)
    monkeypatch.setattr(running, "run", lambda server, bound: None)
    return notes


def test_options_reach_what_they_are_of(started):
    given = ["--model=tiny", "--layer=4", "--port=0", "--max-queue=3", "--max-seconds=7", "--allow-host=a.example"]
    assert serve(*given).exit_code == 0
    assert started["limits"] == Limits(queue=3, audio_seconds=7.0)
    assert (started["given"][0], started["given"][3], started["hosts"]) == ("tiny", {"layer": "4"}, ("a.example",))


def test_the_token_comes_from_the_environment(started, monkeypatch):
    monkeypatch.setenv(command.TOKEN, "from outside")
    assert "characters that no header takes" in serve("--port=0").stderr
    monkeypatch.setenv(command.TOKEN, "secret")
    assert serve("--port=0").stderr == ""
    assert started["token"] == "secret"


def test_a_port_that_others_reach_is_warned_of(started):
    assert "reached from the network, by everybody there" in serve("--host=0.0.0.0", "--port=0").stderr
    assert "by whoever has the token" in serve("--host=0.0.0.0", "--port=0", "--token=secret").stderr


def test_a_taken_port_is_told_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(models, "load", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = serve(f"--port={taken.getsockname()[1]}")
    assert result.exit_code == 2
    assert "give another, --port 0 for any free one" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-queue=0"], "queue=0: give a number from 1 on"),
        (["--timeout=nan"], "timeout_seconds=nan"),
        (["--layer=99"], "layer='99' is unknown"),
        (["--model=tinny"], "model='tinny' is unknown; choose one of tiny"),
        (["--table=a.parquet", "--layer=8"], "--layer: the table decides"),
        (["--table=missing.parquet", "--port=0"], "there is no such file"),
        (["--host=no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
)
def test_wrong_options_are_explained(arguments, words):
    result = serve(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(("option", "field"), command.OF_LIMITS.items())
def test_the_help_says_the_default_of_each_limit(option, field):
    (found,) = [each for each in command.serve_command.params if each.name == option]
    assert found.help.endswith(f"[default: {getattr(Limits(), field):g}]")
