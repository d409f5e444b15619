"""`ftllm chat`: talk to a model, on a screen or through a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ftllm.chat.options import ChatOptions, LoadSettings, LoopMode, ReplyOptions, ThinkMode
from ftllm.chat.session import Reply
from ftllm.errors import UserError
from ftllm.runs import DEFAULT_RUNS

INTERRUPTED = 130


def chat(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL.gguf|RUN", help="A GGUF, a run, or a directory of GGUFs; else the latest run's."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Ask this, print the answer and exit; - reads standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT|@FILE", help="The system prompt.")] = None,
    think: Annotated[
        ThinkMode, typer.Option(help="Let the model choose whether to think, make it, or keep it from it.")
    ] = "auto",
    think_budget: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Tokens it may think; then it is made to answer.")
    ] = None,
    loops: Annotated[
        LoopMode, typer.Option(help="When it goes in circles: say so, stop that, or do not look for it.")
    ] = "warn",
    ctx: Annotated[
        int, typer.Option(min=0, metavar="N", help="Context length in tokens; 0 is the model's own, at most 8192.")
    ] = 0,
    gpu_layers: Annotated[
        str, typer.Option(metavar="N|auto", help="Layers on the GPU; auto is all that fit.")
    ] = "auto",
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of the sampler, for the same reply again.")
    ] = None,
    temp: Annotated[float | None, typer.Option(min=0.0, metavar="T", help="Temperature; 0 is greedy.")] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens generated at most, thoughts included.")
    ] = 8192,
    show_thoughts: Annotated[bool, typer.Option("--show-thoughts/--no-show-thoughts", help="Show thoughts.")] = True,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = DEFAULT_RUNS,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: answer, thought, figures.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer and nothing else.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the figures too, and tracebacks.")] = False,
) -> None:
    """Talk to a model in this terminal.

    With -p, or when standard input is a pipe, it prints the answer to standard output and exits; the thought goes,
    dimmed, to standard error. Sampling is what the GGUF recommends, else temperature 0.7, top-p 0.95, min-p 0.05.

    \b
    Examples:
      ftllm chat
      ftllm chat runs/my-run
      ftllm chat model.gguf -p "What is 345 + 678?"
      git diff | ftllm chat --system "Review this." --no-show-thoughts > review.md
      ftllm chat -p "Why?" --json --temp 0 | jq -r .thought
    """
    options = ChatOptions(
        load=LoadSettings(n_ctx=ctx, gpu_layers=_layers(gpu_layers)),
        reply=ReplyOptions(
            max_tokens=max_tokens, think=think, think_budget=think_budget, loops=loops, temperature=temp, seed=seed
        ),
        system=_system(system),
        show_thoughts=show_thoughts and not quiet,
    )
    if prompt is None and sys.stdin.isatty():
        if json_output or not sys.stdout.isatty():
            raise UserError("there is no prompt, and no terminal to ask for one", "give it with -p, or pipe it in")
        raise typer.Exit(_screen(model, runs, options))
    raise typer.Exit(_answer(model, runs, prompt, options, json_output, quiet, verbose))


def _screen(model: str | None, runs: Path, options: ChatOptions) -> int:
    from ftllm.catalogue import choose

    choice = choose(model, runs)
    from tui.app import run_chat

    return run_chat(choice.path, options)


def _answer(
    model: str | None,
    runs: Path,
    prompt: str | None,
    options: ChatOptions,
    json_output: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    from ftllm.catalogue import choose
    from ftllm.chat.ask import Asker, as_json, error_of
    from ftllm.chat.events import Failed
    from ftllm.chat.terminal import Printer

    with Asker() as asker:
        choice = choose(model, runs)
        text = _prompt(prompt)
        if json_output:
            reply = asker.ask(choice.path, text, options)
            print(as_json(reply, choice.path))
        else:
            if choice.origin and not quiet:
                print(f"{choice.origin}: {choice.path}", file=sys.stderr)
            printer = Printer(sys.stdout, sys.stderr, thoughts=options.show_thoughts, environment=os.environ)
            reply = asker.ask(choice.path, text, options, printer)
    if isinstance(reply.end, Failed):
        raise error_of(reply.end)
    message = reply.message
    if not json_output:
        if verbose and message.stats:
            print(message.stats, file=sys.stderr)
        _warn(reply, options)
    return INTERRUPTED if message.stop_reason == "stopped" else 0


def _warn(reply: Reply, options: ChatOptions) -> None:
    """Say why a reply is not what was hoped for."""
    message = reply.message
    if reply.loop is not None and options.reply.loops == "warn":
        where = "the thought" if reply.loop.thought else "the answer"
        print(
            f"warning: {where} goes in circles of {reply.loop.period} tokens; --loops stop ends that", file=sys.stderr
        )
    if message.stop_reason == "loop":
        print("warning: the answer went in circles and was stopped (--loops stop)", file=sys.stderr)
    elif message.stop_reason == "context":
        print("warning: the context is full, the reply is cut; --ctx sets its length", file=sys.stderr)
    elif message.stop_reason == "length":
        print(f"warning: the reply is cut after {options.reply.max_tokens} tokens (--max-tokens)", file=sys.stderr)
    elif message.stop_reason == "stop" and not message.content:
        print("warning: the model ended its turn without an answer", file=sys.stderr)


def _prompt(given: str | None) -> str:
    """The prompt as given, or standard input whole.

    Raises:
        UserError: it is empty, or not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode("utf-8").strip() if given in (None, "-") else given or ""
        text.encode("utf-8")
    except UnicodeError:
        raise UserError("the prompt is not UTF-8", "convert it, with iconv for one") from None
    if not text.strip():
        raise UserError("the prompt is empty", "give a text with -p, or pipe one in")
    return text


def _system(given: str | None) -> str | None:
    """The system prompt, read from its file for `@FILE`."""
    if given is None or not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"the system prompt {path} cannot be read: {error}", "give a UTF-8 text file") from None


def _layers(given: str) -> int | Literal["auto"]:
    if given == "auto":
        return "auto"
    if given.isdecimal():
        return int(given)
    raise UserError(f"--gpu-layers {given}: not a number", "give a number of layers, or auto")
