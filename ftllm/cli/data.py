"""`ftllm data`: look at training data before training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ftllm.errors import UserError
from ftllm.progress import Reporter

if TYPE_CHECKING:
    from datetime import date

    from ftllm.data.check import Checked
    from ftllm.train.config import TrainConfig
    from ftllm.vocabulary import DirectoryVocabulary

SHOWN = 10  # problems of a kind, unless --verbose


def data_verb(
    action: Annotated[Literal["check", "preview"], typer.Argument(help="What to do.")],
    places: Annotated[list[str], typer.Argument(metavar="PATH|REPO...", help="Data as `ftllm train --data` takes it.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH|REPO", help="Count in its tokens, render with its template."),
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", metavar="ft|seed|sft", help="preview: of which.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of `ftllm train`.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="preview: how many rows.")] = 3,
    line: Annotated[int | None, typer.Option("--line", metavar="N", min=1, help="preview: the row on a line.")] = None,
    epoch: Annotated[int, typer.Option("--epoch", metavar="N", min=1, help="preview: as trained in this epoch.")] = 1,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="check: print nothing but what is wrong.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="check: every problem; and tracebacks.")] = False,
) -> None:
    """Look at training data: what it holds, what is wrong with it, how it is trained.

    check reads every row and names, with its line, each that is no conversation, that leaves a thought open, has an
    empty turn, an odd order of roles or a twin. With --model it counts tokens and names what would not fit or could
    not be trained on that model; without, words. It exits with 2 where training would stop at a row.

    preview shows rows before and after noise, what moved in red, and the loss mask token by token, trained ones
    green; without --model in nano's tokens, where it is here.

    \b
    Examples:
      ftllm data check mine.jsonl
      ftllm data check mine.jsonl heldout.jsonl --model models/nano --set max_length=2048
      ftllm data preview mine.jsonl --model org/name --line 17 --epoch 2
      ftllm data preview org/set:train --preset seed --set noise.ratio=0.3
    """
    reporter = Reporter(quiet=quiet or json_output, verbose=verbose)
    if action == "check":
        config = _config(places, model, preset, assignments)
        _check(places, model, config, reporter, offline=offline, json_output=json_output)
    else:
        model = model or _nano(reporter)
        config = _config(places, model, preset, assignments)
        _preview(places, config, model, reporter, rows, line, epoch, offline=offline, json_output=json_output)


def _config(places: list[str], model: str | None, preset: str | None, assignments: list[str] | None) -> TrainConfig:
    """The settings of a training on this data."""
    from ftllm.train.config import resolve
    from ftllm.train.settings import Setting, read_assignment

    named = {"model": model or ".", "data": places, **({"preset": preset} if preset else {})}
    given = {key: Setting(value, f"--{key}") for key, value in named.items()}
    return resolve([given, dict(map(read_assignment, assignments or []))])


def _vocabulary(model: str, today: date, *, offline: bool) -> DirectoryVocabulary:
    from ftllm.hubfiles import is_repository, snapshot
    from ftllm.vocabulary import TOKENIZER_PATTERNS, from_directory

    path = Path(model).expanduser()
    if not path.exists() and is_repository(model):
        repository, _, revision = model.partition("@")
        path = snapshot(repository, revision=revision or None, patterns=TOKENIZER_PATTERNS, offline=offline)
    return from_directory(path, today)


def _nano(reporter: Reporter) -> str | None:
    from ftllm.catalogue import nano_directory

    nano = nano_directory()
    if nano is None:
        reporter.say("no --model given: the noise is shown, but neither tokens nor the loss mask")
        return None
    reporter.say("no --model given: tokens and template are nano's")
    return str(nano)


def _check(
    places: list[str], model: str | None, config: TrainConfig, reporter: Reporter, *, offline: bool, json_output: bool
) -> None:
    from ftllm.data.check import check
    from ftllm.progress import paced

    vocabulary = _vocabulary(model, config.today, offline=offline) if model else None
    with reporter.task("checking", None, "rows") as task:
        checked = check(
            places,
            vocabulary=vocabulary,
            max_length=config.max_length,
            offline=offline,
            say=reporter.say,
            advance=paced(task, "checked"),
        )
    if json_output:
        print(json.dumps(checked.as_json(), ensure_ascii=False))
    else:
        _print(checked, reporter)
    if checked.errors:
        count = len({problem.source for problem in checked.errors})
        raise UserError(
            f"{count} row{'s' * (count > 1)} cannot be trained on",
            "mend or remove them, or leave them out of training with --set bad_rows=drop",
        )
    if not checked.conversations:
        raise UserError("there is no conversation in the data", "see `ftllm data check --help`")


def _print(checked: Checked, reporter: Reporter) -> None:
    from rich.console import Console
    from rich.text import Text

    from ftllm.data.check import KINDS
    from ftllm.visible import visible

    console = Console(highlight=False, soft_wrap=True)

    def line(label: str, text: str, style: str = "") -> None:
        console.print(Text(f"{label:<10}", style="bold") + Text(visible(text), style=style))

    if not reporter.quiet:
        for file in checked.files:
            more = f", {file['unreadable']} other rows" if file["unreadable"] else ""
            line(
                "data", f"{file['path']} ({file['format'] or 'no format'}, {file['conversations']} conversations{more})"
            )
            for column, rows in file["ignored"].items():
                line("", f"ignored: {column} ({rows} row{'s' * (rows > 1)})", "dim")
        line("turns", ", ".join(f"{count} {role}" for role, count in sorted(checked.turns.items())) or "none")
        spelled = sorted({spelling.strip() for file in checked.files for spelling in file["thoughts"]})
        how = f" ({', '.join(spelled)})" if spelled else ""
        line("thoughts", f"in {checked.thinking} of {checked.turns['assistant']} answers{how}")
        lengths = checked.lengths
        if lengths.sorted:
            trained = "" if checked.trained is None else f", {checked.trained} trained"
            median, most_of_them, longest = map(lengths.quantile, (0.5, 0.95, 1))
            line(lengths.unit, f"{sum(lengths.sorted)} in {len(lengths.sorted)} rows{trained}")
            line("", f"median {median}, 95 % have at most {most_of_them}, the longest {longest} ({lengths.longest_at})")
            histogram = lengths.histogram()
            most = max(rows for _, _, rows in histogram)
            for low, high, rows in histogram:
                bar = "█" * round(32 * rows / most) or ("▏" if rows else "")
                line("", f"{low:>8} - {high:<8} {bar} {rows}")
        for note in checked.notes:
            line("note", note)
    for kind, severity in KINDS.items():
        found = [problem for problem in checked.problems if problem.kind == kind]
        shown = found if reporter.verbose else found[:SHOWN]
        if found:
            console.print(Text(f"{severity:<10}", style="red" if severity == "error" else "yellow") +
                          Text(f"{kind}: {len(found)}", style="bold"))  # fmt: skip
        for problem in shown:
            line("", f"{problem.source}: {problem.message}")
        if len(found) > len(shown):
            line("", f"and {len(found) - len(shown)} more (--verbose lists them)", "dim")


def _preview(
    places: list[str],
    config: TrainConfig,
    model: str | None,
    reporter: Reporter,
    rows: int,
    line: int | None,
    epoch: int,
    *,
    offline: bool,
    json_output: bool,
) -> None:
    from itertools import islice

    from rich.console import Console

    from ftllm.data.lines import stop
    from ftllm.data.preview import LEGEND, PLAIN_LEGEND, as_json, examples, show

    if len(places) > 1:
        raise UserError("preview shows one file or data set at a time", "give one")
    if config.noise.unit == "token" and model is None:
        raise UserError("noise.unit token needs a model, whose tokens they are", "name it with --model")
    vocabulary = _vocabulary(model, config.today, offline=offline) if model else None
    found = examples(
        places[0],
        config.noise.settings(),
        seed=config.seed,
        epoch=epoch - 1,
        progress=(epoch - 1) / max(1, config.epochs - 1),
        loss=config.loss,
        vocabulary=vocabulary,
        line=line,
        fault=(lambda error: reporter.warn(error.message)) if config.bad_rows == "drop" else stop,
        offline=offline,
        say=reporter.say,
    )
    tokenizer = vocabulary.tokenizer if vocabulary else None
    if json_output:
        shown = [as_json(example, tokenizer) for example in islice(found, rows)]
        print(json.dumps({"rows": shown}, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    reporter.say(PLAIN_LEGEND if console.color_system is None or console.no_color else LEGEND)
    for example in islice(found, rows):
        show(example, tokenizer, console)
