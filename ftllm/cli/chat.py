"""`ftllm chat`: talk to a model, on a screen or through a pipe."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ftllm.chat.defaults import default_path, read_defaults
from ftllm.chat.options import (
    PARALLEL,
    ChatOptions,
    LoadSettings,
    LoopMode,
    Overflow,
    ReplyOptions,
    ThinkMode,
    gpu_layers_of,
    template_kwargs_of,
)
from ftllm.chat.session import Reply
from ftllm.chat.settings import reply_options
from ftllm.cli.models import local
from ftllm.cli.wanted import Wanted
from ftllm.errors import UserError, WorkError
from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS

if TYPE_CHECKING:
    from ftllm.chat.ask import Kept
    from ftllm.chat.remote import Target
    from ftllm.chat.store import SessionInfo

INTERRUPTED = 130
BUDGET_ENDS = 32  # tokens over the budget that the words take which end a thought
AS_OPTIONS = {"temperature": "temp", "template_kwargs": "template_kwarg"}  # fields whose option has another name
Settings = TypeVar("Settings", LoadSettings, ReplyOptions)


def chat(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL.gguf|RUN|REPO[:QUANT]|http(s)://ENDPOINT",
            help="A GGUF, a run, a directory of GGUFs, a Hub repository, or an OpenAI-compatible endpoint; else the "
            "latest run's.",
        ),
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
    speculate: Annotated[
        bool,
        typer.Option("--speculate", help="Draft what was said before: quicker where a text is said again, as in code."),
    ] = False,
    overflow: Annotated[
        Overflow, typer.Option(help="When the context is full: drop the oldest turns, or stop.")
    ] = "drop",
    template_kwarg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Set a variable of the chat template, as in reasoning_effort=high; may repeat.",
            show_default=False,
        ),
    ] = None,
    ctx: Annotated[
        int, typer.Option(min=0, metavar="N", help="Context length in tokens; 0 takes 8192 to 32768, as memory allows.")
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
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.gguf[=SCALE]", help="Put a LoRA adapter on the model; may repeat.", show_default=False
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Show a vision model an image with the prompt, or the first message; may repeat.",
            show_default=False,
        ),
    ] = None,
    mmproj: Annotated[
        Path | None,
        typer.Option(metavar="FILE.gguf", help="With --image: the model's projector, else the one beside it."),
    ] = None,
    name: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Which of an endpoint's models; the only one by default.")
    ] = "",
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Go on with this session, or begin it. It brings its model, system prompt and settings.",
        ),
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the session that was touched last.")
    ] = False,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='Answer every {"prompt": ...} or {"messages": [...]} of a file, perhaps with "images": [FILE...], in '
            "order, as JSON lines; the same command again goes on after an interruption.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --batch: how many to answer together.")
    ] = PARALLEL,
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
    dimmed, to standard error. Sampling is what the GGUF recommends, else temperature 0.7, top-p 0.95, min-p 0.05;
    chat.toml in your configuration directory holds defaults of your own, which the screen writes too.

    \b
    Examples:
      ftllm chat
      ftllm chat runs/my-run
      ftllm chat model.gguf -p "What is 345 + 678?"
      ftllm chat someone/model-GGUF:Q4_K_M
      git diff | ftllm chat --system "Review this." --no-show-thoughts > review.md
      ftllm chat -p "Why?" --json --temp 0 | jq -r .thought
      ftllm chat --session notes -p "And now in French."
      ftllm chat my-run --batch questions.jsonl > answers.jsonl
      ftllm chat http://gpu-box:8000/v1 --model Qwen3-32B
    """
    given, defaults = _given(context), read_defaults(default_path())
    said = ReplyOptions(
        max_tokens=max_tokens,
        think=think,
        think_budget=think_budget,
        loops=loops,
        overflow=overflow,
        speculate=speculate,
        template_kwargs=template_kwargs_of(template_kwarg or []),
        temperature=temp,
        seed=seed,
    )
    if go_on and session is not None:
        raise UserError("--continue and --session each name a session", "give one of them")
    if go_on and batch is None:
        session = _last_session()
    options = ChatOptions(
        load=LoadSettings(n_ctx=ctx, gpu_layers=gpu_layers_of(gpu_layers), adapters=_adapters(lora or [])),
        reply=_changed(reply_options(defaults.values), said, given, **AS_OPTIONS),
        system=_system(system) if "system" in given else defaults.system,
        show_thoughts=show_thoughts and not quiet,
        runs=runs,
        defaults=defaults,
        session=session,
        images=tuple(str(path.expanduser().resolve()) for path in image or []),
    )
    output, given = _Output(json=json_output, quiet=quiet, verbose=verbose), _given(context)
    reporter = Reporter(quiet=quiet or json_output, verbose=verbose)
    if batch is not None:
        if prompt is not None or session is not None or go_on:
            raise UserError("--batch goes with neither -p nor a session", "the prompts are in the file")
        wanted = Wanted(local(model, runs, reporter), name, runs, mmproj, given)
        raise typer.Exit(_batch(batch, wanted, options, parallel, output))
    asked = prompt is not None or not sys.stdin.isatty()
    if not asked and (json_output or not sys.stdout.isatty()):
        raise UserError("there is no prompt, and no terminal to ask for one", "give it with -p, or pipe it in")
    with ExitStack() as stack:
        kept = None
        if session is not None:
            from ftllm.chat.ask import Kept
            from ftllm.chat.store import open_store

            store = stack.enter_context(open_store())
            if store.recovered:
                print(f"warning: {store.recovered}", file=sys.stderr)
            kept = Kept(store, session)
            if kept.info is not None:
                options = _as_before(kept.info, options, given)
                model = model or kept.info.model or None
        seen = kept is not None and kept.shows_images
        wanted = Wanted(local(model, runs, reporter), name, runs, mmproj, given, seen)
        if asked:
            raise typer.Exit(_answer(wanted, prompt, options, output, kept))
    target, _, options = wanted.find(options)
    raise typer.Exit(open_screen(target, options))


@dataclass(frozen=True)
class _Output:
    """How an answer is printed."""

    json: bool
    quiet: bool
    verbose: bool


def _given(context: typer.Context) -> set[str]:
    """The parameters that stood on the command line."""
    return {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }


def _as_before(info: SessionInfo, options: ChatOptions, given: set[str]) -> ChatOptions:
    """A session's own settings, but for what is given now."""
    load = _changed(info.load, options.load, given, adapters="lora", n_ctx="ctx")
    reply = _changed(info.options, options.reply, given, **AS_OPTIONS)
    return replace(options, load=load, reply=reply, system=options.system if "system" in given else info.system)


def _changed(before: Settings, now: Settings, given: set[str], **parameters: str) -> Settings:
    """Settings as they were, but for those whose parameter is `given`; most are called as their field."""
    changes = {
        field.name: getattr(now, field.name)
        for field in fields(before)
        if parameters.get(field.name, field.name) in given
    }
    return replace(before, **changes)


def open_screen(target: Target, options: ChatOptions) -> int:
    """Talk on the screen until the person leaves; the exit code."""
    from tui.app import run_chat

    return run_chat(target, options)


def _answer(wanted: Wanted, prompt: str | None, options: ChatOptions, output: _Output, kept: Kept | None) -> int:
    from ftllm.chat.ask import Asker, as_json, error_of
    from ftllm.chat.events import Failed
    from ftllm.chat.terminal import Printer

    with Asker() as asker:
        if not wanted.remote:
            asker.start()
        target, origin, options = wanted.find(options)
        text = _prompt(prompt)
        if output.json:
            reply = asker.ask(target, text, options, kept=kept)
            print(as_json(reply, asker.model))
        else:
            if origin and not output.quiet:
                print(f"{origin}: {target}", file=sys.stderr)
            printer = Printer(
                sys.stdout,
                sys.stderr,
                thoughts=options.show_thoughts,
                environment=os.environ,
                quiet=output.quiet,
                verbose=output.verbose,
            )
            reply = asker.ask(target, text, options, printer, kept)
    if isinstance(reply.end, Failed):
        raise error_of(reply.end)
    message = reply.message
    if not output.json:
        if output.verbose and message.stats:
            print(message.stats, file=sys.stderr)
        _warn(reply, options)
    return INTERRUPTED if message.stop_reason == "stopped" else 0


def _batch(file: Path, wanted: Wanted, options: ChatOptions, parallel: int, output: _Output) -> int:
    from ftllm.chat.ask import json_line
    from ftllm.chat.batch import Journal, Result, answer_all, read_questions

    reporter = Reporter(quiet=output.quiet, verbose=output.verbose)
    target, origin, options = wanted.find(options)
    rows = read_questions(file, options.system, options.images)
    if origin:
        reporter.say(f"{origin}: {target}")
    journal = Journal(rows, target, options)
    if journal.results:
        reporter.say(f"going on: {len(journal.results)} of {len(rows)} were answered before")
    failed, finished, warned = 0, False, False
    try:
        with reporter.task("answering", len(rows), "rows") as bar:

            def show(number: int, result: Result) -> None:
                nonlocal failed, warned
                failed += "error" in result
                over = _over_budget(result.get("thought_tokens") or 0, options)
                if over and not warned:
                    warned = True
                    reporter.warn(f"row {number + 1}: {over}")
                row = rows[number]
                print(json_line(result if row.id is None else {"id": row.id, **result}), flush=True)
                bar.advance()

            answer_all(rows, target, options, journal, show, parallel=parallel)
        finished = True
    finally:
        journal.close(remove=finished)
        if not finished and journal.results:
            reporter.say(
                f"{len(journal.results)} of {len(rows)} are answered; the same command again goes on from there"
            )
    if failed:
        raise WorkError(f"{failed} of {len(rows)} rows could not be answered", "each says why in its `error`")
    return 0


def _over_budget(thought_tokens: int, options: ChatOptions) -> str:
    """That an endpoint has let a model think for longer than it was asked to; nothing where it has not."""
    budget = options.reply.think_budget
    if budget is None or thought_tokens <= budget + BUDGET_ENDS:
        return ""
    return f"it thought for {thought_tokens} tokens: this endpoint does not keep to --think-budget"


def _warn(reply: Reply, options: ChatOptions) -> None:
    """Say why a reply is not what was hoped for."""
    message = reply.message
    if reply.loop is not None and options.reply.loops == "warn":
        where = "the thought" if reply.loop.thought else "the answer"
        print(f"warning: {where} repeats itself, {reply.loop.count} times; --loops stop ends that", file=sys.stderr)
    if reply.dropped:
        print(f"warning: the context is full, the {reply.dropped} oldest messages are left out", file=sys.stderr)
    if over := _over_budget(message.thought_tokens, options):
        print(f"warning: {over}", file=sys.stderr)
    if message.stop_reason == "loop":
        what = "answer" if message.content else "thought"
        print(f"warning: the {what} went in circles and was stopped (--loops stop)", file=sys.stderr)
    elif message.stop_reason == "context":
        print("warning: the context is full, the reply is cut; --ctx sets its length", file=sys.stderr)
    elif message.stop_reason == "length":
        print(f"warning: the reply is cut after {options.reply.max_tokens} tokens (--max-tokens)", file=sys.stderr)
    elif message.stop_reason == "stop" and not message.content:
        print("warning: the model ended its turn without an answer", file=sys.stderr)


def _last_session() -> str:
    """The uid of the session that was touched last."""
    from ftllm.chat.store import list_sessions, open_store

    with open_store() as store:
        found = list_sessions(store, limit=1)
    if not found:
        raise UserError("there is no session to go on with", "begin one: `ftllm chat`")
    return found[0].uid


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


def _adapters(given: list[str]) -> tuple[tuple[str, float], ...]:
    """`FILE.gguf` or `FILE.gguf=0.5`, as absolute paths with their scales."""
    adapters = []
    for text in given:
        path, scale = text, 1.0
        if not Path(text).exists() and "=" in text:
            path, _, number = text.rpartition("=")
            try:
                scale = float(number)
            except ValueError:
                raise UserError(
                    f"--lora {text}: {number!r} is no scale", "give a number; 1 is the adapter as it is"
                ) from None
        adapters.append((str(Path(path).expanduser().resolve()), scale))
    return tuple(adapters)
