"""`ftllm eval`: measure models on graded prompts and held-out conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def eval_verb(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL|RUN", help="A .gguf, a run or a model directory; else the latest run."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE.jsonl", help="Graded prompts or conversations; may repeat."),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="Compare with this model, prompt by prompt.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many rows, spread evenly over the data.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temp", min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw, where --temp is not 0.")] = 3407,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest reply.")] = 2048,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are.")] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the report as JSON, with every reply.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but warnings and errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Details and tracebacks.")] = False,
) -> None:
    """Measure models: is the answer right, do they think, how long, and how likely is held-out text?

    Graded prompts are answered through llama.cpp: accuracy, think rate, tokens, unclosed and looping thoughts.
    Conversations give the negative log-likelihood per assistant token, for a run in transformers (the base and the
    base with the adapter) and for any GGUF. Everything by tag, with 95 % intervals. A run keeps its last report
    (eval.json), and `ftllm push` puts it on the model card.

    \b
    Examples:
      ftllm eval
      ftllm eval my-run --against models/base-Q4_K_M.gguf --data heldout.jsonl
      ftllm eval a.gguf b.gguf --data conversations.jsonl --json
    """
    from ftllm.evals import models as known
    from ftllm.evals import report, tasks
    from ftllm.evals.measure import Settings, measure
    from ftllm.files import write_json
    from ftllm.progress import Reporter

    reporter = Reporter(quiet=quiet or json_output, verbose=verbose)
    # What comes first in a table is what the others are compared with.
    named = [*([against] if against else []), *(models or [])]
    targets = known.resolve_all(named, runs)
    if not models:
        latest = known.resolve(None, runs)
        reporter.say(f"measuring the latest run, {latest.label}")
        targets.append(latest)
    measured = tasks.load(data or known.default_data(targets[-1])).limited(limit)
    if not data:
        reporter.say(f"measuring on {', '.join(str(path) for path in measured.paths)}")
    results = measure(targets, measured, Settings(temperature, seed, max_tokens), reporter)
    compared_with = targets[0].label if against else None
    summary = report.as_json(results, compared_with)
    if limit is None:  # what was measured on a part is no result of the run's
        for run in {target.run.path: target.run for target in targets if target.run is not None}.values():
            write_json(run.evaluation, summary)
            reporter.detail(f"kept as {run.evaluation}; `ftllm push` puts it on the card")
    if out is not None:
        write_json(out, {**summary, "replies": report.replies_json(results)})
    if json_output:
        import json

        print(json.dumps(summary, ensure_ascii=False))
    else:
        _show(results, compared_with)


def _show(results: object, against: str | None) -> None:
    from rich.console import Console

    from ftllm.evals.measure import Results
    from ftllm.evals.tables import tables

    assert isinstance(results, Results)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    for table in tables(results, against):
        console.print(table)
