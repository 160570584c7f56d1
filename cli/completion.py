"""What shells complete: models, variants, layers, words of options, files; from data, without PyTorch.

An option has one meaning in all commands, so its name says what completes it, see `completing`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    add_completion_class,
    get_completion_class,
)

from hear_transformers.errors import OptionError

from .failures import guarded

Completer = Callable[[click.Context, str], list[CompletionItem]]
"""What completes a word that is begun, see `click.ParamType.shell_complete`."""

PROGRAMS = ("embed-audio", "hear-transformers")

SHELLS = ("bash", "zsh", "fish")

FILES = ("FILE", "PATH", "FOLDER", "DIR", "WEIGHTS")
"""Parts of the metavars of options whose values are files or folders."""

MODEL_ARGUMENTS = ("model", "a", "b")
"""Arguments that name a model."""


# Words


def beginning(
    incomplete: str, words: Iterable[str], about: Callable[[str], str | None] = lambda word: None
) -> list[CompletionItem]:
    """Return the words that begin as given, each once."""
    return [CompletionItem(word, help=about(word)) for word in dict.fromkeys(words) if word.startswith(incomplete)]


def models(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete a model: families, with the variants of those that are begun, "passt/base"; else variants, "mn10_as"."""
    from hear_transformers import FAMILIES, OPEN_FAMILIES, catalogue

    about = FAMILIES | OPEN_FAMILIES
    rows = catalogue.sizes()
    names = [*about]
    if incomplete:  # nobody reads all
        names += [f"{family}/{variant}" for family, variants in rows.items() for variant in variants]
    if found := beginning(incomplete, names, about.get):
        return found
    bare = Counter(chain.from_iterable(rows.values()))
    return beginning(incomplete, (variant for variant, n in bare.items() if n == 1))


def variants(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete a variant of the model that is named, of all models without one."""
    from hear_transformers import catalogue

    families = {name.partition("/")[0] for name in named(context)} & {*catalogue.sizes()}
    rows = [catalogue.sizes()[family] for family in families] or catalogue.sizes().values()
    return beginning(incomplete, (variant for each in rows for variant in each))


def layers(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete a layer of the models that are named by options, or the last of a list of such.

    Arguments are not known yet where an option is completed, so nothing is offered where they name the model.
    """
    from hear_transformers import catalogue

    if any(isinstance(each, click.Argument) and each.opts[0] in MODEL_ARGUMENTS for each in context.command.params):
        return []
    sizes: dict[str, str] = {}
    for name in named(context) or [None]:
        try:
            family, variant = catalogue.resolve_own(name, context.params.get("variant"))
        except OptionError:
            continue
        rows = catalogue.sizes().get(family, {})
        for layer, size, *_ in rows[variant or next(iter(rows))]["layers"] if rows else ():
            sizes.setdefault(layer, f"{size} numbers")
    return last_of_list(incomplete, [*sizes, "all", "-1"] if sizes else [], sizes.get)


def named(context: click.Context) -> list[str]:
    """Return the models that the part of the command before names, without a checkpoint: "passt=my.pt"."""
    given = next((value for name in ("models", "model") if (value := context.params.get(name))), ())
    return [str(name).partition("=")[0] for name in ([given] if isinstance(given, str) else given)]


def last_of_list(
    incomplete: str, words: Iterable[str], about: Callable[[str], str | None] = lambda word: None
) -> list[CompletionItem]:
    """Complete the last word of a list, "4,8,", with words that are not in it."""
    *before, begun = re.split("(?<=[,+])", incomplete)
    there = "".join(before)
    left = [word for word in words if word not in re.split("[,+]", there)]
    found = beginning(begun, left, about)
    return [CompletionItem(f"{there}{item.value}", help=item.help) for item in found]


def choices(option: str, *more: str) -> Completer:
    """Return what completes the words of an option of `embedding.choices`, and more."""

    def complete(context: click.Context, incomplete: str) -> list[CompletionItem]:
        from hear_transformers.embedding.choices import CHOICES

        return last_of_list(incomplete, (*CHOICES[option], *more))

    return complete


def words(*known: str) -> Completer:
    """Return what completes one of some words."""
    return lambda context, incomplete: beginning(incomplete, known)


def recipes(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a recipe."""
    from hear_transformers.training.recipes import RECIPES

    return beginning(incomplete, RECIPES)


def files(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Leave files and folders to the shell."""
    return [CompletionItem(incomplete, type="file")]


COMPLETERS: dict[str, Completer] = {
    **dict.fromkeys(("--model", "--random-model", *MODEL_ARGUMENTS, "systems", "patterns"), models),
    **dict.fromkeys(("--variant", "variant"), variants),
    **dict.fromkeys(("--layer", "--layers"), layers),
    "--pool": choices("pool"),
    "--framing": choices("framing"),
    "--precision": choices("precision"),
    "--resample": choices("resample"),
    "--recipe": recipes,
    "--device": words("auto", "cpu", "cuda", "mps"),
    "--channel": words("mix", "each", "1", "2"),
    "--dtype": words("float32", "float16"),
    "--batch-size": words("auto"),
    "--num-workers": words("auto"),
}
"""Name of an option or argument -> what completes it."""


class Completed(click.types.StringParamType):
    """Text that a shell completes."""

    def __init__(self, complete: Completer) -> None:
        self.complete = complete

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what the text may become."""
        return self.complete(ctx, incomplete)


def completing(command: click.Command) -> None:
    """Attach what completes it to every text that a command and those below it take; other types have their own."""
    for parameter in command.params:
        if type(parameter.type) is click.types.StringParamType and (complete := completer_of(parameter)):
            parameter.type = Completed(complete)
    for below in getattr(command, "commands", {}).values():
        completing(below)


def completer_of(parameter: click.Parameter) -> Completer | None:
    """Return what completes a parameter: by its name, by its metavar; arguments without either are files."""
    is_file = isinstance(parameter, click.Argument) or any(part in (parameter.metavar or "") for part in FILES)
    known = (COMPLETERS[name] for name in parameter.opts if name in COMPLETERS)
    return next(known, files if is_file else None)


# Shells


class Bash(BashComplete):
    """Bash, which takes names such as mn40_as(2) as they are printed."""

    name = "bash"

    def format_completion(self, item: CompletionItem) -> str:
        """Escape what the shell would take for its own: twice, as its `read` takes one backslash away."""
        if item.type == "plain":
            item = CompletionItem(re.sub(r"[^\w@%+=:,./~-]", r"\\\\\g<0>", item.value))
        return super().format_completion(item)


class Fish(FishComplete):
    """Fish, whose script in click ends a word at its first comma."""

    name = "fish"
    source_template = FishComplete.source_template.replace('string split ","', 'string split --max 1 ","')


add_completion_class(Bash)
add_completion_class(Fish)

INSTALL = """\b
Once for all shells to come:
  bash  hear-transformers completion bash >> ~/.bashrc
  zsh   hear-transformers completion zsh >> ~/.zshrc      (below compinit)
  fish  hear-transformers completion fish > ~/.config/fish/conf.d/hear-transformers.fish

\b
To try it in this shell:
  bash, zsh  eval "$(hear-transformers completion bash)"
  fish       hear-transformers completion fish | source
"""


@click.command("completion", epilog=INSTALL)
@click.argument("shell", type=click.Choice(SHELLS))
@guarded
def completion_command(shell: str) -> None:
    """Print what a SHELL completes both commands with, by Tab.

    Models, variants, layers, the words of options, options and files.
    """
    for program in PROGRAMS:
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        kind = get_completion_class(shell)
        assert kind is not None  # a choice
        click.echo(kind(click.Command(program), {}, program, variable).source())
