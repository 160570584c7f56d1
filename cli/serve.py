"""`hear-transformers serve`: embeddings, tags and search over HTTP."""

from __future__ import annotations

from typing import Any

import click

from hear_transformers.errors import OptionError

from .checks import check_words
from .failures import guarded, one_line
from .imports import importing
from .logs import log_on_stderr
from .parsing import milliseconds, trusting

OF_LIMITS = {
    "max_upload": "upload_megabytes",
    "max_files": "files",
    "max_seconds": "audio_seconds",
    "timeout": "timeout_seconds",
    "max_queue": "queue",
    "max_batch": "batch",
    "max_wait": "wait_ms",
    "decoders": "decoders",
}
"""Options -> fields of `serve.limits.Limits`."""

TOKEN = "HEAR_TRANSFORMERS_TOKEN"

EXAMPLES = """\b
Examples:
  hear-transformers serve --model mast/mini
  hear-transformers serve --model tiny --layer 8 --table clips.parquet
  hear-transformers serve --table clips.parquet          with the model that made the table
  HEAR_TRANSFORMERS_TOKEN=... hear-transformers serve --host 0.0.0.0

\b
  curl -F file=@a.wav -F file=@b.wav http://127.0.0.1:8000/v1/embeddings
  curl --data-binary @a.wav "http://127.0.0.1:8000/v1/embeddings?timestamps=true"
  curl -F file=@a.wav "http://127.0.0.1:8000/v1/tags?top_k=3"
  curl -F file=@a.wav "http://127.0.0.1:8000/v1/search?k=5"
  curl http://127.0.0.1:8000/info      also /health, /metrics, /v1/models and /openapi.json

Ctrl-C or SIGTERM ends the server once every request that it accepted is answered.
"""


@click.command("serve", epilog=EXAMPLES)
@click.option(
    "--model", metavar="NAME", help="As in embed-audio.  [default: that of --table, or of --weights, or tiny]"
)
@click.option("--variant", metavar="NAME", help="Network of that family.")
@click.option("--weights", default="", metavar="FILE", help="Checkpoint instead of the published one.")
@click.option("--layer", metavar="LAYER", help="8, -1, features, mel, all, or a list: 4,8,12.")
@click.option("--pool", metavar="NAME", help="From layer to vector: mean, max, meanmax, ...")
@click.option("--hop-ms", type=float, metavar="MS", help="Time between two vectors along time.")
@click.option("--window-ms", callback=milliseconds, metavar="MS", help="Audio per vector along time.")
@click.option("--framing", metavar="NAME", help="windowed or native, of vectors along time.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, cuda:1, mps or cpu.")
@click.option("--precision", metavar="NAME", help="Of the network: float32, bfloat16, float16, tf32, auto.")
@trusting
@click.option("--table", metavar="TABLE", help="Embeddings to search: what embed-audio wrote.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="0.0.0.0 for every network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any free one.")
@click.option("--token", envvar=TOKEN, default="", metavar="TEXT", help=f"Bearer token; better in {TOKEN}.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Name that a proxy on this machine asks for.")
@click.option("--max-upload", type=float, metavar="MB", help="Of a request's body.  [default: 64]")
@click.option("--max-files", type=int, metavar="N", help="Sounds in one request.  [default: 32]")
@click.option("--max-seconds", type=float, metavar="S", help="Audio of one sound.  [default: 600]")
@click.option("--timeout", type=float, metavar="S", help="From a request to its answer.  [default: 60]")
@click.option("--max-queue", type=int, metavar="N", help="Requests at a time; more are told 429.  [default: 64]")
@click.option("--max-batch", type=int, metavar="N", help="Clips given to the network at once.  [default: 32]")
@click.option("--max-wait", type=float, metavar="MS", help="How long it waits for more clips.  [default: 5]")
@click.option("--decoders", type=int, metavar="N", help="Processes that decode.  [default: 2]")
@guarded
def serve_command(
    model: str | None,
    weights: str,
    device: str,
    trust_remote_code: bool | None,
    table: str | None,
    host: str,
    port: int,
    token: str,
    allow_host: tuple[str, ...],
    **options: Any,
) -> None:
    """Answer with embeddings, tags and search over HTTP.

    Sounds are sent as files of a form, as the body, or in JSON. The server is reached from this machine alone unless
    --host says otherwise.
    """
    limits = {OF_LIMITS[name]: options.pop(name) for name in OF_LIMITS}
    given = {name: value for name, value in options.items() if value is not None}
    if table is not None and model is None and given:
        raise click.UsageError(
            f"--{next(iter(given)).replace('_', '-')}: the table decides; leave it out, or give --model"
        )
    if token and not (token.isascii() and token.isprintable() and not any(map(str.isspace, token))):
        raise OptionError("the token has characters that no header takes; give letters, digits and signs of ASCII")
    if table is None or model is not None:
        check_words(model, _words(options), of_its_own=bool(weights), labels=False)
    with importing():
        from hear_transformers.serve import models, running
        from hear_transformers.serve.limits import Limits
        from hear_transformers.serve.service import Service

    checked = Limits(**{name: value for name, value in limits.items() if value is not None})
    with log_on_stderr(False), running.bind(host, port) as bound:
        if not running.is_loopback(bound):
            _warn_of_the_network(running.address_of(bound), has_token=bool(token))
        if trust_remote_code:
            given["trust_remote_code"] = True
        named = model if model is not None or table is not None else _default(weights, given)
        served = models.load(named, weights, device, given, table, trusted=bool(trust_remote_code))
        with Service(served, checked) as service:
            server = running.make_server(service, bound, token, allow_host)
            click.echo(one_line(f"{served.name} at {running.address_of(bound)}; Ctrl-C ends it"))
            running.run(server, bound)


def _words(options: dict[str, Any]) -> dict[str, Any]:
    """Return options for `check_words`, which knows more of them."""
    from hear_transformers.embedding.choices import CHOICES

    return dict.fromkeys(CHOICES) | options


def _default(weights: str, given: dict[str, Any]) -> str | None:
    """Return the model where none is named: the one that has the variant, that the weights are of, or the default."""
    from hear_transformers import catalogue

    return None if "variant" in given else catalogue.family_of_checkpoint(weights)


def _warn_of_the_network(address: str, *, has_token: bool) -> None:
    """Warn of a port that others reach."""
    who = "whoever has the token" if has_token else f"everybody there, without a token (set {TOKEN})"
    click.echo(
        one_line(
            f"Warning: {address} is reached from the network, by {who}, and nothing is encrypted; put a proxy with TLS "
            "in front of it"
        ),
        err=True,
    )
