"""`ftllm push`: publish a run's GGUFs or its adapter on the Hugging Face Hub, with a card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS

if TYPE_CHECKING:
    from ftllm.hub.push import PushRequest


def push_verb(
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="Where to: a repository of yours, made if new.")],
    source: Annotated[
        str | None, typer.Argument(metavar="[RUN|DIR]", help="A run, or a directory of GGUFs; else the latest run.")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Publish the PEFT adapter instead of the GGUFs.")] = False,
    static_and_i1: Annotated[
        bool,
        typer.Option(
            "--static-and-i1",
            help="Two repositories naming each other: X-GGUF, and X-i1-GGUF for files made with an importance matrix.",
        ),
    ] = False,
    card_extra: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Markdown for the card; its front matter (license, tags...) wins over ours."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Commit to this branch, made if new.")] = "main",
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = DEFAULT_RUNS,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network; with --dry-run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every file, its size and the card, and send nothing.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the address and nothing else.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print details, and tracebacks.")] = False,
) -> None:
    """Publish on the Hugging Face Hub: the files, and a card with what was measured.

    Log in once with `hf auth login` (or set HF_TOKEN). What is on the Hub already is not sent again, so after a cut
    connection or Ctrl-C the same command goes on; all files appear at once, with their card. What you write into the
    card on the Hub is kept.

    \b
    Examples:
      ftllm push you/gemma-3-4b-FT-GGUF
      ftllm push you/gemma-3-4b-FT-GGUF my-run --dry-run
      ftllm push you/gemma-3-4b-FT-lora my-run --adapter --private
      ftllm push you/gemma-3-4b-FT my-run --static-and-i1 --card-extra about.md
    """
    from ftllm.hub.push import PushRequest

    request = PushRequest(
        repo=repo,
        given=source,
        adapter=adapter,
        both=static_and_i1,
        card_extra=card_extra,
        private=private,
        revision=revision,
        runs_root=runs,
        offline=offline,
        dry_run=dry_run,
    )
    reporter = Reporter(json_lines=json_output, quiet=quiet, verbose=verbose)
    if dry_run:
        show_plan(request, reporter)
    else:
        reporter.done(repositories=publish(request, reporter))


def publish(request: PushRequest, reporter: Reporter) -> list[dict[str, Any]]:
    """Push, and print where the repositories are; what to say about each as JSON."""
    from ftllm.hub.push import push

    done = push(request, reporter)
    for item in done:
        if not reporter.json_lines:
            print(item.url)
        kept = f", {len(item.unchanged)} unchanged" if item.unchanged else ""
        files = "1 file" if len(item.sent) == 1 else f"{len(item.sent)} files"
        what = f"{files} published{kept}" if item.sent else "nothing has changed since the last push"
        reporter.say(what)
    return [
        {"repo": item.repo, "url": item.url, "commit": item.commit, "sent": item.sent, "unchanged": item.unchanged}
        for item in done
    ]


def show_plan(request: PushRequest, reporter: Reporter) -> None:
    """What `--dry-run` prints: a table of files and the card, for each repository."""
    from ftllm.hub.push import rehearse

    planned = rehearse(request, reporter)
    if reporter.json_lines:
        entries = [
            {
                "repo": item.repo,
                "exists": item.exists,
                "files": [{"path": path, "bytes": size, "state": state or None} for path, size, state in item.files],
                "card": item.card,
            }
            for item in planned
        ]
        reporter.done(dry_run=True, repositories=entries)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for item in planned:
        known = {True: "exists", False: "would be made", None: "not compared with the Hub"}[item.exists]
        console.print(f"{item.repo} ({known})", style="bold", markup=False)
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        table.add_column(style="dim")
        for path, size, state in item.files:
            table.add_row(path, f"{size:,} bytes", state)
        console.print(table)
        console.print()
        print(item.card)
