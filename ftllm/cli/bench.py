"""`ftllm bench`: how fast this machine talks with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftllm.runs import DEFAULT_RUNS

if TYPE_CHECKING:
    from rich.table import Table

    from ftllm.chat.bench import Report

DEFAULT_LENGTHS = (128, 512, 2048)


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL.gguf|RUN", help="A GGUF, a run, or a directory of GGUFs; else the latest run's."),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(
            "--length", min=32, metavar="N", help="Tokens of prompt, 128, 512 and 2048 if not given; may repeat."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens to generate at each length.")] = 64,
    gpu_layers: Annotated[
        str, typer.Option(metavar="N|auto", help="Layers on the GPU; auto is all that fit.")
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="CPU threads; 0 chooses, as chat does.")] = 0,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = DEFAULT_RUNS,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but warnings and errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Details and tracebacks.")] = False,
) -> None:
    """Measure a model here: tokens a second while reading and writing, the wait for the first token, memory.

    With the engine, the settings and the sampler of `ftllm chat`. The first token is waited for twice: with an empty
    cache (cold), and after a short second message in the same conversation (warm).

    \b
    Examples:
      ftllm bench
      ftllm bench model.gguf --length 1024 --length 8192 --tokens 128
      ftllm bench model.gguf --json | jq '.readings[].generation_speed'
    """
    import json

    from ftllm.catalogue import choose
    from ftllm.chat.bench import SLACK, measure
    from ftllm.chat.options import LoadSettings, gpu_layers_of
    from ftllm.llama.header import read_header
    from ftllm.progress import Reporter

    reporter = Reporter(quiet=quiet or json_output, verbose=verbose)
    choice = choose(model, runs)
    if choice.origin:
        reporter.say(f"{choice.origin}: {choice.path}")
    room = (read_header(choice.path).n_ctx_train or 2 * max(DEFAULT_LENGTHS)) - tokens - SLACK
    lengths = sorted(set(length or [each for each in DEFAULT_LENGTHS if each <= room] or [max(32, room)]))
    settings = LoadSettings(
        n_ctx=max(lengths) + tokens + SLACK, gpu_layers=gpu_layers_of(gpu_layers), n_threads=threads or None
    )
    with reporter.task("measuring", total=None) as task:
        report = measure(choice.path, settings, lengths, tokens, on_step=task.remark)
    if json_output:
        print(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        _show(report)


def _show(report: Report) -> None:
    from rich.console import Console

    memory = f"{report.memory_bytes / 2**20:,.0f} MiB" if report.memory_bytes else "unknown"
    console = Console(highlight=False, markup=False)
    console.print(
        f"{report.description}, {report.size_bytes / 2**20:,.0f} MiB, {report.n_params / 1e6:,.1f} M parameters, "
        f"{report.placement}"
    )
    console.print(
        f"ready {report.start_seconds:.2f} s after the start ({report.load_seconds:.2f} s to load); "
        f"memory at most {memory} with {report.n_ctx} tokens of context"
    )
    console.print(table(report))


def table(report: Report) -> Table:
    """One row a length."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("prompt", "read tokens/s", "write tokens/s", "first token cold s", "warm s"):
        made.add_column(title, justify="right", no_wrap=True)
    for reading in report.readings:
        made.add_row(
            f"{reading.prompt_tokens:,}",
            _number(reading.prompt_speed, 1),
            _number(reading.generation_speed, 1),
            _number(reading.first_token_cold, 3),
            _number(reading.first_token_warm, 3),
        )
    return made


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
