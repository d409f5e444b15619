"""The `ftllm` program: its verbs, and how errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from ftllm.errors import UserError

app = typer.Typer(
    name="ftllm",
    help="Fine-tune a reasoning model on your own machine, export it to GGUF, and talk to it in this terminal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130


def main() -> None:
    """Run the program; turn every known failure into one line, a hint and an exit code."""
    verbose = "--verbose" in sys.argv
    try:
        app()
    except UserError as error:
        if verbose:
            traceback.print_exc()
        print_error(error)
        leave(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        leave(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(0)


def print_error(error: UserError) -> None:
    """`error: ...` and `hint: ...` on stderr, each on one line."""
    print("error: " + " ".join(error.message.split()), file=sys.stderr)
    if error.hint:
        print("hint: " + " ".join(error.hint.split()), file=sys.stderr)


def leave(code: int) -> None:
    """Exit with `code` after flushing what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)
