"""`ftllm models`: what is on this machine, what is in a file, and GGUFs from the Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ftllm.errors import UserError
from ftllm.files import human
from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS

if TYPE_CHECKING:
    from ftllm.hub.names import Reference
    from ftllm.hub.pull import Pulled


def models_verb(
    action: Annotated[Literal["list", "show", "pull", "rm"], typer.Argument(help="What to do.")] = "list",
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|RUN|REPO[:QUANT]]", help="show: a GGUF, a run, or a pulled model; pull and rm: a repository."
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = DEFAULT_RUNS,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object; pull: JSON lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print paths and nothing else.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show: all metadata; and tracebacks.")] = False,
) -> None:
    """List, inspect, fetch and remove models.

    list shows the models of runs, those lying here and those in the Hub's cache; show what a GGUF's header says, or
    where a run comes from. pull downloads into the Hub's cache, goes on where it was interrupted, and checks the hash;
    without a type it takes the one that fits this machine. rm frees what pull took.

    \b
    Examples:
      ftllm models
      ftllm models show model-Q4_K_M.gguf
      ftllm models show my-run
      ftllm models pull someone/model-GGUF:Q4_K_M
      ftllm models rm someone/model-GGUF
    """
    reporter = Reporter(json_lines=json_output, quiet=quiet, verbose=verbose)
    if action == "list":
        if name is not None:
            raise UserError(f"list takes no name, and got {name}", f"`ftllm models show {name}` tells about one")
        list_models(runs, reporter)
    elif name is None:
        raise UserError(f"`ftllm models {action}` of what?", "see `ftllm models --help` for examples")
    elif action == "show":
        show(name, runs, reporter)
    elif action == "pull":
        pulled(_reference(name), reporter, offline=offline)
    else:
        remove(name, reporter)


def list_models(runs: Path, reporter: Reporter) -> None:
    """Print a table, or one JSON object."""
    from ftllm.catalogue import everything

    found = everything(runs)
    if reporter.json_lines:
        entries = [
            {
                "name": model.name,
                "path": str(model.path),
                "origin": model.origin,
                "architecture": model.architecture or None,
                "type": model.type or None,
                "bits_per_weight": round(model.bits_per_weight, 4) or None,
                "parameters": model.parameters or None,
                "context": model.context or None,
                "bytes": model.size,
                "fits": model.fits,
                "problem": model.problem or None,
            }
            for model in found
        ]
        print(json.dumps({"models": entries}, ensure_ascii=False))
        return
    if reporter.quiet:
        for model in found:
            print(model.path)
        return
    if not found:
        reporter.say("no model here: `ftllm demo` makes one, `ftllm models pull REPO` fetches one")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ftllm.visible import visible

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    for title in ("origin", "arch", "type"):
        table.add_column(title, no_wrap=True)
    for title in ("bits", "size", "context"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for model in found:
        cells = [escape(visible(text)) for text in (model.name, model.origin, model.architecture, model.type)]
        if model.problem:
            table.add_row(*cells, "", human(model.size), "", "[red]damaged[/red]")
            continue
        figures = (f"{model.bits_per_weight:.2f}", human(model.size), f"{model.context:,}" if model.context else "")
        table.add_row(*cells, *figures, "yes" if model.fits else "[yellow]no[/yellow]")
    console.print(table)


def show(name: str, runs: Path, reporter: Reporter) -> None:
    """Print what a GGUF says about itself, or a run's lineage."""
    from ftllm import runs as all_runs
    from ftllm.hub.names import parse_reference
    from ftllm.hub.pull import cached
    from ftllm.hub.show import describe, lineage

    path = Path(name).expanduser()
    run = None if path.is_file() else all_runs.find(name, runs)
    if run is not None:
        chain = lineage(run, runs)
        if reporter.json_lines:
            print(json.dumps({"lineage": chain}, ensure_ascii=False))
        else:
            print_lineage(chain)
        return
    if not path.exists() and (reference := parse_reference(name)):
        path = cached(reference).path
    if not path.exists():
        raise UserError(f"there is no model or run {name}", "give a GGUF file or a run; `ftllm models` lists them")
    facts = describe(path)
    if reporter.json_lines:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print_facts(facts, everything=reporter.verbose)


def print_facts(facts: dict[str, Any], *, everything: bool) -> None:
    """A GGUF's facts for people; long metadata are cut unless `everything`."""
    from rich.console import Console
    from rich.text import Text

    from ftllm.visible import visible

    console = Console(highlight=False, soft_wrap=True)
    bits = f"{facts['bits_per_weight']:.2f} bits per weight" if facts["bits_per_weight"] else ""
    shards = f" in {facts['shards']} files" if facts["shards"] > 1 else ""
    rows = {
        "file": facts["path"],
        "kind": f"{facts['kind']}, {facts['architecture']}" + (f": {facts['name']}" if facts["name"] else ""),
        "type": ", ".join(part for part in (facts["type"], bits) if part),
        "size": f"{human(facts['bytes'])}{shards}, {facts['parameters']:,} parameters",
        "context": f"{facts['context']:,} tokens" if facts["context"] else "",
        "tensors": ", ".join(
            f"{entry['count']} {kind} ({human(entry['bytes'])})" for kind, entry in facts["tensors"].items()
        ),
    }
    for label, text in rows.items():
        if text:
            console.print(Text(f"{label:<9}", style="bold") + Text(visible(text)))
    console.print(Text("\nspecial tokens", style="bold"))
    shown = [
        token for token in facts["special_tokens"] if everything or token["roles"] or len(facts["special_tokens"]) < 40
    ]
    for token in shown:
        roles = f" ({', '.join(token['roles'])})" if token["roles"] else ""
        text = visible(json.dumps(token["text"], ensure_ascii=False))
        console.print(Text(f"  {token['id']:>7} {text} {token['kind']}{roles}"))
    if len(shown) < len(facts["special_tokens"]):
        console.print(f"  and {len(facts['special_tokens']) - len(shown)} more (--verbose)")
    console.print(Text("\nmetadata", style="bold"))
    for key, value in facts["metadata"].items():
        text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).replace("\n", "\\n")
        console.print(Text(f"  {key} = {text if everything or len(text) < 100 else text[:97] + '...'}"))
    console.print(Text("\nchat template", style="bold"))
    console.print(Text(visible(facts["template"]) if facts["template"] else "  none"))


def print_lineage(chain: list[dict[str, Any]]) -> None:
    """A run and what it was made from, one below the other."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for depth, link in enumerate(chain):
        arrow = "  " * (depth - 1) + "└ from " if depth else ""
        console.print(Text(arrow) + Text(str(link["name"]), style="bold") + Text(f"  {_link(link)}"))
        if link.get("files"):
            console.print(Text("  " * depth + "  " + ", ".join(link["files"]), style="dim"))


def _link(link: dict[str, Any]) -> str:
    """What to say about one link of a lineage."""
    if link["kind"] == "base":
        where = f"{link['repo']}@{link['revision']}" if link.get("repo") else link.get("path")
        return f"base model, {where}"
    parts = [
        f"stage {link['stage']}" if link.get("stage") else "",
        f"preset {link['preset']}" if link.get("preset") else "",
        link["status"] or "",
        "trained again since" if link.get("changed") else "",
        {"same": "its adapter trained on", "merge": "its adapter kept, a new one beside it"}.get(
            str(link.get("continued_with")), ""
        ),
    ]
    if link.get("steps"):
        parts.append(f"{link['steps']} steps")
    if link.get("data"):
        parts.append("on " + ", ".join(link["data"]))
    if link.get("eval_nll") is not None:
        parts.append(f"held out {link['eval_before']:.4f} -> {link['eval_nll']:.4f} nats a token")
    return ", ".join(part for part in parts if part)


def pulled(reference: Reference, reporter: Reporter, *, offline: bool = False) -> Pulled:
    """Pull a model and print where it is."""
    from ftllm.hub.pull import pull

    found = pull(reference, reporter, offline=offline)
    if not reporter.json_lines:
        print(found.path)
        if found.mmproj:
            print(found.mmproj)
    reporter.say(f"Talk to it: ftllm chat {found.reference.repo}{':' + found.type if found.type else ''}")
    reporter.done(
        repo=found.reference.repo,
        commit=found.commit,
        path=str(found.path),
        mmproj=str(found.mmproj) if found.mmproj else None,
        type=found.type or None,
        bytes=found.bytes,
    )
    return found


def remove(name: str, reporter: Reporter) -> None:
    """Free a pulled model's space."""
    from ftllm.hub.cache import remove as free

    if Path(name).exists():
        raise UserError(f"{name} is a file of yours, not one in the Hub's cache", "delete it yourself if you mean it")
    freed = free(_reference(name))
    if reporter.json_lines:
        print(json.dumps({"removed": name, "bytes": freed}))
    else:
        print(f"{human(freed)} freed")


def _reference(name: str) -> Reference:
    from ftllm.hub.names import parse_reference

    reference = parse_reference(name)
    if reference is None:
        raise UserError(f"{name!r} is not a repository", "give one such as someone/model-GGUF:Q4_K_M")
    return reference


def local(named: str | None, runs: Path, reporter: Reporter, *, offline: bool = False) -> str | None:
    """What a verb that wants a model was given, with a repository on the Hub pulled and replaced by its file's path.

    A path, a run and an endpoint stay what they are.
    """
    from ftllm import runs as all_runs

    if named is None or Path(named).expanduser().exists() or all_runs.find(named, runs) is not None:
        return named
    from ftllm.hub.names import parse_reference
    from ftllm.hub.pull import pull

    reference = parse_reference(named)
    # `runs/typo` is a path that is not there, rather than someone called "runs".
    if reference is None or Path(named).parent.is_dir():
        return named
    return str(pull(reference, reporter, offline=offline).path)
