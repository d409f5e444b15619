"""`ftllm export`: from a run, an adapter or a model directory to verified GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS

if TYPE_CHECKING:
    from ftllm.export.pipeline import ExportResult


def export(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|ADAPTER_DIR|MODEL_DIR]", help="What to export; else the latest run."),
    ] = None,
    quant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE[,TYPE]...",
            help="File types, such as Q4_K_M,Q8_0 or i1-IQ2_M, or the groups all and i1; may repeat. Default: Q4_K_M.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the files go: the run's gguf/, else ./gguf.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="PATH|REPO", help="The 16-bit base, where it is not the one the adapter names."),
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write the adapter alone, as a LoRA GGUF for `ftllm chat --lora`.")
    ] = False,
    mmproj: Annotated[
        bool, typer.Option("--mmproj", help="Write the vision part too, as an mmproj GGUF for `ftllm chat --image`.")
    ] = False,
    imatrix: Annotated[
        str,
        typer.Option(
            metavar="none|auto|best|FILE",
            help="Importance matrix for all types that gain by one: measured (auto), measured and kept where it lowers"
            " the KL divergence on held-out text (best), or from a GGUF file. With none, one is measured for types"
            " that cannot do without.",
        ),
    ] = "none",
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TYPE", help="Type of the tensors whose names match; may repeat, the first wins."),
    ] = None,
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Write shards of at most so many bytes, such as 5G or 800M.")
    ] = None,
    verify: Annotated[
        Literal["full", "quick", "none"],
        typer.Option(
            help="Compare each file with transformers before it gets its name; full: on long texts, with perplexity,"
            " KL divergence and the likelihood of held-out answers."
        ),
    ] = "quick",
    llama_cpp: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A llama.cpp checkout whose converter to use.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/REPO", help="Publish them on the Hub afterwards, as `ftllm push` does.")
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = DEFAULT_RUNS,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written and what it needs, and write nothing.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the files' paths and nothing else.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print details, and tracebacks.")] = False,
) -> None:
    """Merge an adapter into its base, quantize, verify, and write GGUF files.

    The adapter is added in float32 while the base streams by, straight into the quantizer: no merged copy, no 16-bit
    file in between. Several types take one pass.

    \b
    Examples:
      ftllm export
      ftllm export my-run --quant Q4_K_M,Q8_0
      ftllm export models/nano --quant F16 --out /tmp/gguf
      ftllm export my-run --adapter-only
      ftllm export my-run --dry-run
      ftllm export my-run --quant all,i1
      ftllm export my-run --push you/my-model-GGUF
    """
    from ftllm.errors import UserError
    from ftllm.export.child import VERIFIER, WORKER, prepared

    if adapter_only and mmproj:
        raise UserError("--mmproj has no meaning with --adapter-only", "export the model, or the adapter")
    processes = [] if adapter_only else [WORKER] if dry_run or verify == "none" else [WORKER, VERIFIER]
    with prepared(*processes):
        from ftllm.export import extras, pipeline, results

        reporter = Reporter(json_lines=json_output, quiet=quiet, verbose=verbose)
        request = pipeline.ExportRequest(
            given=source,
            quants=tuple(quant or ()),
            out=out,
            base=base,
            imatrix=imatrix,
            tensor_types=tuple(tensor_type or ()),
            split_max_size=split_max_size,
            verify=verify,
            llama_cpp=llama_cpp,
            runs_root=runs,
            offline=offline,
            dry_run=dry_run,
            mmproj=mmproj,
        )
        if push is not None and not dry_run:
            from ftllm.hub.push import PushRequest, require_access

            require_access(PushRequest(push, offline=offline), reporter)
        result = extras.export_adapter(request, reporter) if adapter_only else pipeline.export(request, reporter)
        if mmproj:
            result = extras.export_projector(request, result, reporter)
    if dry_run and not json_output and not adapter_only:
        print_plan(result)
    elif not json_output:
        for file in result.files:
            print(file.path if quiet else results.summary(file))
        if verify == "full" and not quiet:
            print_figures(result)
        against = "peft's own layers" if adapter_only else "transformers"
        checked = f"verified against {against}" if result.verified else "not verified"
        reporter.say("Nothing was written" if dry_run else f"Done in {result.seconds:.1f} s, {checked}")
    pushed = {}
    if push is not None and not dry_run:
        from ftllm.cli.push import publish

        made_of = result.source.run.path if result.source.run and out is None else result.files[0].path.parent
        pushed = {"pushed": publish(PushRequest(push, str(made_of), runs_root=runs), reporter)}
    reporter.done(
        files=[
            {
                "path": str(file.path),
                "type": file.type,
                "bytes": file.bytes,
                "bits_per_weight": round(file.bits_per_weight, 4),
                "sha256": file.sha256 or None,
                **({"shard": file.shard, "shards": file.shards} if file.shards > 1 else {}),
                **({"imatrix": True} if file.imatrix else {}),
                **({"kept": True} if file.kept else {}),
                **({"verification": file.figures} if file.figures else {}),
            }
            for file in result.files
        ],
        verified=result.verified,
        seconds=round(result.seconds, 2),
        **({"dry_run": True} if dry_run else {}),
        **pushed,
    )


def print_figures(result: ExportResult) -> None:
    """What `--verify full` measured, a line a type."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("type", "bits", "perplexity", "KL divergence", "99 %", "same top", "answer nats"):
        table.add_column(column, justify="left" if column == "type" else "right", no_wrap=True)
    measured = {file.type: file for file in result.files if "text" in file.figures}
    for file in measured.values():
        seen = file.figures
        row = [file.type, f"{file.bits_per_weight:.2f}"]
        if "perplexity" in seen:
            row += [
                f"{seen['perplexity']:.4g}",
                f"{seen['kl_divergence']:.4f} ± {seen['kl_divergence_error']:.4f}",
                f"{seen['kl_divergence_quantiles']['99']:.4f}",
                f"{seen['same_top']:.1%}",
            ]
        else:
            row += ["-"] * 4
        table.add_row(*row, f"{seen['nll']:.4f}" if "nll" in seen else "-")
    seen = next(iter(measured.values())).figures
    if "perplexity" in seen:
        last = f"{seen['reference_nll']:.4f}" if "nll" in seen else "-"
        table.add_row("transformers", "32", f"{seen['reference_perplexity']:.4g}", "", "", "", last)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    where = f"{seen['chunks']} x {seen['n_ctx']} tokens of " if "perplexity" in seen else ""
    console.print(f"measured on {where}{seen['text']}; nats a token, against transformers in float32", markup=False)


def print_plan(result: ExportResult) -> None:
    """What `--dry-run` shows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ftllm.export.pipeline import describe
    from ftllm.files import human

    console = Console(highlight=False, soft_wrap=True)
    plan, room = result.plan, result.room
    assert room is not None
    console.print(describe(result.source), markup=False)
    console.print(f"  {plan['architecture']}, {plan['parameters']:,} parameters in {plan['tensors']} tensors")
    if result.source.adapter is not None:
        console.print(f"  the adapter changes {len(plan['merged'])} tensors; every key of it has its place:")
        for tensor, module in sorted(plan["merged"].items()):
            console.print(f"    {module} -> {plan['renamed'][tensor] or tensor}", markup=False)
    table = Table("type", "bits per weight", "size", "tensors", "file", box=None, pad_edge=False)
    paths = iter(result.files)
    for planned in plan["files"]:
        types = ", ".join(f"{count} {name}" for name, count in planned["types"].items())
        first, *others = [next(paths).path for _ in range(planned["shards"])]
        name = f"{first} and {len(others)} more" if others else str(first)
        table.add_row(
            planned["label"], f"{planned['bits_per_weight']:.2f}", human(planned["bytes"]), escape(types), escape(name)
        )
    for file in paths:  # the vision part
        table.add_row(file.type, "", human(file.bytes), "the vision part", escape(str(file.path)))
    console.print(table)
    free = "unknown" if room.memory_free is None else human(room.memory_free)
    console.print(f"disk    {human(room.disk)} needed, {human(room.disk_free)} free")
    console.print(f"memory  {human(room.memory)} needed at most, {free} free")
