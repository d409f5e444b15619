"""The `ftllm` program: its verbs, and how errors become one line and an exit code."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import takewhile
from typing import Annotated, Any

import typer

from ftllm import __version__
from ftllm.errors import UserError, WorkError
from ftllm.start import START
from ftllm.values import dataclass

INTERRUPTED = 130
HELP = {"-h", "--help"}
FAILED = 1
# Which extra brings a library that the light core lacks.
EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "trl": "train",
    "datasets": "train",
    "accelerate": "train",
    "math_verify": "train",
    "safetensors": "export",
    "sentencepiece": "export",
    "google": "export",
    "unsloth": "gpu",
    "unsloth_zoo": "gpu",
}


@dataclass(frozen=True)
class Verb:
    """Where a verb's function is (`module:function`) and its line in `ftllm --help`."""

    function: str
    summary: str


# A verb's module is imported only when that verb is asked for, so that `ftllm --help` stays quick.
VERBS: dict[str, Verb] = {
    "train": Verb("ftllm.cli.train:train_verb", "Train an adapter on a base model, with the burden or without."),
    "chat": Verb("ftllm.cli.chat:chat", "Talk to a model, on a screen or through a pipe."),
    "sessions": Verb("ftllm.cli.sessions:sessions", "List, search, export and import the chats that are kept."),
    "export": Verb("ftllm.cli.export:export", "Merge, quantize, verify, and write GGUF files."),
    "push": Verb("ftllm.cli.push:push_verb", "Publish GGUFs or an adapter on the Hugging Face Hub, with a card."),
    "models": Verb("ftllm.cli.models:models_verb", "List, inspect, fetch and remove models."),
    "bench": Verb("ftllm.cli.bench:bench", "Measure how fast this machine talks with a model."),
    "data": Verb("ftllm.cli.data:data_verb", "Check training data, and show how it is trained."),
    "doctor": Verb("ftllm.cli.doctor:doctor", "Check this machine: versions, llama.cpp, converter, room."),
    "demo": Verb("ftllm.cli.demo:demo_verb", "Train, export and measure the nano model, then chat with it."),
    "eval": Verb("ftllm.cli.eval:eval_verb", "Measure models on graded prompts and held-out conversations."),
}


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application for one command line: the verb asked for alone, or every verb, named and not imported."""
    app = typer.Typer(
        name="ftllm",
        help="Fine-tune a reasoning model on your own machine, export it to GGUF, and talk to it in this terminal.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": sorted(HELP)},
    )
    app.callback(invoke_without_command=True)(program)
    options = list(takewhile(lambda argument: argument.startswith("-"), arguments))
    asked = next(iter(arguments[len(options) :]), "")
    if asked in VERBS and not HELP & set(options):
        app.command(asked, short_help=VERBS[asked].summary)(load(VERBS[asked]))
        return app
    for name, verb in VERBS.items():
        app.command(name, short_help=verb.summary)(_named_only)
    return app


def load(verb: Verb) -> Callable[..., None]:
    """Import a verb's function."""
    module, function = verb.function.split(":")
    loaded: Callable[..., None] = getattr(import_module(module), function)
    return loaded


def _named_only() -> None:
    """Stands for a verb where verbs are only named."""


def program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"ftllm {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the program; turn every failure into one line, a hint and an exit code."""
    arguments = sys.argv[1:]
    verbose = "--verbose" in arguments
    try:
        gc.disable()  # as while this module is imported, for the verb is
        try:
            application = build(arguments)
        finally:
            if not START.begun:
                gc.enable()
        code = application(args=arguments, prog_name="ftllm", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Abort:
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(0)
    except Exception as error:
        if verbose and not isinstance(error, typer.TyperException):
            traceback.print_exc()
        failure = as_user_error(error)
        print_error(failure)
        leave(failure.exit_code)
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    leave(code if isinstance(code, int) else 0)


def as_user_error(error: Exception) -> UserError:
    """What to tell a person about `error`; anything unforeseen is named as the bug it is."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, typer.TyperException):
        return usage_error(error)
    if isinstance(error, ModuleNotFoundError):
        library = (error.name or "").partition(".")[0]
        if library in EXTRAS:
            extra = EXTRAS[library]
            return UserError(f"this needs {library}, which is not installed", f"pip install 'ftllm[{extra}]'")
    if isinstance(error, OSError):
        from ftllm.files import storage_error

        known = storage_error(error, _path_of(error))
        if isinstance(known, UserError):
            return known
    if isinstance(error, MemoryError):
        return WorkError("out of memory", "close other programs, or take a smaller model, context or batch")
    return WorkError(
        f"unexpected {type(error).__name__}: {error}",
        "this is a bug in ftllm: run it again with --verbose for the traceback",
    )


def usage_error(error: typer.TyperException) -> UserError:
    """A command line that typer refused, with the help to ask for."""
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ftllm"
    message = error.format_message().strip().rstrip(".").replace(": Value error, ", ": ")
    return UserError(message[:1].lower() + message[1:], f"see `{command} --help`")


def _path_of(error: OSError) -> Any:
    from pathlib import Path

    return Path(str(error.filename or "a file"))


def print_error(error: UserError) -> None:
    """`error: ...` and `hint: ...` on stderr, each on one line.

    Of several processes that train together, all meet the same bad input, and the first on each machine says so; what
    went wrong in another alone it says itself, with its number.
    """
    rank, local = (os.environ.get(name, "0") if "WORLD_SIZE" in os.environ else "0" for name in ("RANK", "LOCAL_RANK"))
    if local != "0" and error.exit_code != FAILED:
        return
    print(f"error: {'' if rank == '0' else f'process {rank}: '}" + " ".join(error.message.split()), file=sys.stderr)
    if error.hint:
        print("hint: " + " ".join(error.hint.split()), file=sys.stderr)


def leave(code: int) -> None:
    """Exit with `code` after flushing what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)
