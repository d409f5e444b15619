"""`ftllm demo`: the whole way on the embedded nano model, with the numbers that say whether it worked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftllm.errors import UserError
from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS

if TYPE_CHECKING:
    from rich.table import Table

    from ftllm.evals.measure import Results
    from ftllm.evals.replies import Outcome
    from ftllm.train.stage import TrainResult

QUANT = "Q4_K_M"
NEEDED = ("config.json", "model.safetensors", "ft.yaml", "ft.jsonl", "heldout.jsonl")
MAX_TOKENS = 512  # more than any right reply of this model takes; a loop ends here
SHOWN = 6


@dataclass
class Steps:
    """Seconds that each step took, in order."""

    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        self.reporter.event("step", name=name)
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)


def demo_verb(
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where the run goes.")] = DEFAULT_RUNS,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the training; may repeat.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Measure on at most so many prompts.")] = None,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Open the chat at the end, on a terminal.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but warnings and errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Details and tracebacks.")] = False,
) -> None:
    """Train the nano model to think before it answers, export it, measure it against its base, and talk to it.

    It takes a few minutes on two CPU cores and needs no network: the base, its data and its held-out prompts are in
    models/nano. Without a terminal it answers six held-out prompts instead of opening the chat.

    \b
    Examples:
      ftllm demo
      ftllm demo --no-chat --json
    """
    nano = find_nano()
    reporter = Reporter(json_lines=json_output, quiet=quiet, verbose=verbose)
    steps = Steps(reporter)
    with steps.step("train"):
        trained = train_nano(nano, runs, settings or [], reporter)
    with steps.step("export"):
        tuned = export(str(trained.run.path), None, reporter)
    with steps.step("export the base"):
        base = export(str(nano), trained.run.path / "base", reporter)
    with steps.step("measure"):
        results = measure(nano, base, tuned, limit, reporter)
    if json_output:
        from ftllm.evals.report import as_json

        report = as_json(results, results.graded[0].label)
        reporter.done(run=str(trained.run.path), gguf=str(tuned), base=str(base), seconds=steps.seconds, report=report)
        return
    show(results, trained, steps.seconds)
    if chat and sys.stdin.isatty() and sys.stdout.isatty():
        from ftllm.chat.options import ChatOptions
        from ftllm.cli.chat import open_screen

        open_screen(tuned, ChatOptions())
    else:
        print_replies(examples(results))
        print(f"\nTalk to it: ftllm chat {trained.run.name if runs == DEFAULT_RUNS else tuned}")


def find_nano() -> Path:
    """The nano model of this repository, else of the working directory.

    Raises:
        UserError: it is not there, or not whole.
    """
    from ftllm.catalogue import nano_directory

    nano = nano_directory()
    if nano is None:
        raise UserError("the nano model is not here", "run `ftllm demo` in a clone of the repository, which has it")
    missing = [name for name in NEEDED if not (nano / name).is_file()]
    if missing:
        raise UserError(f"{nano} lacks {', '.join(missing)}", "restore it with `git checkout -- models/nano`")
    return nano


def train_nano(nano: Path, runs: Path, settings: list[str], reporter: Reporter) -> TrainResult:
    """Train as models/nano/ft.yaml says, with `--set` on top."""
    from ftllm.train.config import rebased, resolve
    from ftllm.train.settings import Setting, read_assignment, read_yaml
    from ftllm.train.stage import train

    place = "ftllm demo"
    given = rebased(read_yaml(nano / "ft.yaml"), nano)
    model = {"model": Setting(str(nano), place), "data": Setting(str(nano / "ft.jsonl"), place)}
    config = resolve([{**model, **given}, dict(map(read_assignment, settings))])
    return train(config, reporter, runs=runs, offline=True)


def export(given: str, out: Path | None, reporter: Reporter) -> Path:
    """Export a run or a model directory to Q4_K_M; the file."""
    from ftllm.export.child import VERIFIER, WORKER, prepared

    with prepared(WORKER, VERIFIER):
        from ftllm.export.pipeline import ExportRequest
        from ftllm.export.pipeline import export as run_export

        return run_export(ExportRequest(given, (QUANT,), out), reporter).files[0].path


def measure(nano: Path, base: Path, tuned: Path, limit: int | None, reporter: Reporter) -> Results:
    """Both models, the base first, on the held-out prompts (and conversations, where there are any)."""
    from ftllm.evals import tasks
    from ftllm.evals.measure import Settings
    from ftllm.evals.measure import measure as run_measure
    from ftllm.evals.models import heldout_files, resolve_all

    data = tasks.load(heldout_files(nano)).limited(limit)
    return run_measure(resolve_all([str(base), str(tuned)]), data, Settings(max_tokens=MAX_TOKENS), reporter)


def show(results: Results, trained: TrainResult, seconds: dict[str, float]) -> None:
    """Before and after, and what each step took."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(before_and_after(results, trained))
    console.print("  ".join(f"{name} {duration(taken)}" for name, taken in seconds.items()))


def before_and_after(results: Results, trained: TrainResult) -> Table:
    """The base beside the trained model."""
    from rich.table import Table

    from ftllm.evals.report import METRICS, differences, estimate, likelihood, likelihood_difference, tagged
    from ftllm.evals.tables import interval, show

    metrics = {metric.key: metric for metric in METRICS}
    before, after = results.graded
    table = Table(title="Held-out prompts, greedy, through the Q4_K_M files", title_justify="left")
    table.add_column("")
    for name in ("base", "trained", "difference [95 %]"):
        table.add_column(name, justify="right")
    titles = {"accuracy": "right %", "think_rate": "thinks first %", "thought_tokens": "tokens of thought"}
    for key, title in titles.items():
        for tag in ("easy", "hard"):
            ours, theirs = tagged(after.outcomes, tag), tagged(before.outcomes, tag)
            if ours:
                metric = metrics[key]
                table.add_row(
                    f"{title}, {tag} ({len(ours)})",
                    show(estimate(metric, theirs), metric, bare=True),
                    show(estimate(metric, ours), metric, bare=True),
                    show(differences(ours, theirs)[key], metric, signed=True),
                )
    if results.scored:
        first, last = results.scored
        table.add_row(
            f"nats per token ({sum(first.tokens)})",
            f"{likelihood(first, None).value:.3f}",
            f"{likelihood(last, None).value:.3f}",
            interval(likelihood_difference(last, first, None), "+.3f"),
        )
    elif trained.eval_before is not None and trained.eval_after is not None:
        change = trained.eval_after - trained.eval_before
        table.add_row("nats per token", f"{trained.eval_before:.3f}", f"{trained.eval_after:.3f}", f"{change:+.3f}")
    return table


def duration(seconds: float) -> str:
    """`2 min 05 s`, or `4.2 s` under a minute."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def examples(results: Results) -> list[Outcome]:
    """Six replies of the trained model: hard and easy in turn, each of another kind of task while there are any."""
    outcomes = results.graded[-1].outcomes
    chosen: list[Outcome] = []
    for turn in range(SHOWN):
        wanted = "easy" if turn % 2 else "hard"
        seen = {tag for reply in chosen for tag in reply.prompt.tags} - {"easy", "hard"}
        left = [reply for reply in outcomes if reply not in chosen]
        left.sort(key=lambda reply: (wanted not in reply.prompt.tags, bool(seen & set(reply.prompt.tags))))
        chosen += left[:1]
    return chosen


def print_replies(replies: list[Outcome]) -> None:
    """Prompts, thoughts and answers as text."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for reply in replies:
        console.print()
        console.print(Text(f"> {reply.prompt.messages[-1].content}", style="bold"))
        if reply.thought:
            console.print(Text("\n".join(f"  {line}" for line in reply.thought.splitlines()), style="dim"))
        console.print(Text(reply.answer or "(no answer)"))
