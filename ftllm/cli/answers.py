"""What `ftllm chat` prints where there is no screen: one answer, or one to each question of a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ftllm.chat.options import ChatOptions
from ftllm.chat.session import Reply
from ftllm.cli.wanted import Wanted
from ftllm.errors import UserError, WorkError
from ftllm.progress import Reporter
from ftllm.values import dataclass

if TYPE_CHECKING:
    from ftllm.chat.ask import Kept
    from ftllm.chat.batch import Result

INTERRUPTED = 130
BUDGET_ENDS = 32  # tokens over the budget that the words take which end a thought


@dataclass(frozen=True)
class Output:
    """How an answer is printed."""

    json: bool
    quiet: bool
    verbose: bool


def answer(wanted: Wanted, prompt: str | None, options: ChatOptions, output: Output, kept: Kept | None) -> int:
    """Ask one thing and print the answer; the exit code.

    Args:
        prompt: None or `-` for standard input.
        kept: the session to go on with.
    """
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


def answer_file(file: Path, wanted: Wanted, options: ChatOptions, parallel: int, output: Output) -> int:
    """Print an answer to each question of a file, `parallel` of them made together; the exit code."""
    from ftllm.chat.ask import json_line
    from ftllm.chat.batch import Journal, answer_all, read_questions

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
