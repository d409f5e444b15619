"""`ftllm chat`: talk to a model, on a screen or through a pipe.

Annotations are evaluated here: as text, typer would have each compiled and evaluated twice at every start.
"""

import gc
import sys
from contextlib import ExitStack
from dataclasses import fields, replace
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
    adapters_of,
    gpu_layers_of,
    system_of,
    template_kwargs_of,
)
from ftllm.chat.settings import reply_options
from ftllm.cli.answers import Output, answer, answer_file
from ftllm.cli.models import local
from ftllm.cli.wanted import Wanted
from ftllm.errors import UserError
from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS
from ftllm.start import START

if TYPE_CHECKING:
    from ftllm.chat.remote import Target
    from ftllm.chat.store import SessionInfo

AS_OPTIONS = {"temperature": "temp", "template_kwargs": "template_kwarg"}  # fields whose option has another name
GARBAGE = 50_000  # new objects after which the screen looks for cycles; Python's own 700 are there at every key
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
        load=LoadSettings(n_ctx=ctx, gpu_layers=gpu_layers_of(gpu_layers), adapters=adapters_of(lora or [])),
        reply=_changed(reply_options(defaults.values), said, given, **AS_OPTIONS),
        system=system_of(system) if "system" in given else defaults.system,
        show_thoughts=show_thoughts and not quiet,
        runs=runs,
        defaults=defaults,
        session=session,
        images=tuple(str(path.expanduser().resolve()) for path in image or []),
    )
    output = Output(json=json_output, quiet=quiet, verbose=verbose)
    reporter = Reporter(quiet=quiet or json_output, verbose=verbose)
    asked = prompt is not None or not sys.stdin.isatty()
    if asked or batch is not None:
        START.end(write=False)
    if batch is not None:
        if prompt is not None or session is not None or go_on:
            raise UserError("--batch goes with neither -p nor a session", "the prompts are in the file")
        wanted = Wanted(local(model, runs, reporter), name, runs, mmproj, given)
        raise typer.Exit(answer_file(batch, wanted, options, parallel, output))
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
            raise typer.Exit(answer(wanted, prompt, options, output, kept))
    target, _, options = wanted.find(options)
    raise typer.Exit(open_screen(target, options))


def _given(context: typer.Context) -> set[str]:
    """The parameters that stood on the command line."""
    return {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }


def _as_before(info: "SessionInfo", options: ChatOptions, given: set[str]) -> ChatOptions:
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


def open_screen(target: "Target", options: ChatOptions) -> int:
    """Talk on the screen until the person leaves; the exit code."""
    gc.set_threshold(GARBAGE)
    from tui.app import run_chat

    return run_chat(target, options)


def _last_session() -> str:
    """The uid of the session that was touched last."""
    from ftllm.chat.store import list_sessions, open_store

    with open_store() as store:
        found = list_sessions(store, limit=1)
    if not found:
        raise UserError("there is no session to go on with", "begin one: `ftllm chat`")
    return found[0].uid
