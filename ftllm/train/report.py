"""`REPORT.md` and `loss.svg`: what a person should see of a finished run, made from its files alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ftllm.files import write_text
from ftllm.runs import Run
from ftllm.train.metrics import read, smoothed
from ftllm.train.plot import curve

PLOT = "loss.svg"
REPORT = "REPORT.md"
Sample = dict[str, Any]


def write(run: Run, manifest: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Write the run's plot and report.

    Args:
        run: where they go; its metrics and configuration are read.
        manifest: of the run, results included.
        samples: answers before and after.

    Raises:
        WorkError: no space left.
    """
    lines = read(run.metrics)
    write_text(run.path / PLOT, plot(run.name, manifest, lines))
    write_text(run.path / REPORT, report(manifest, lines, samples, run.config.read_text(encoding="utf-8")))


def plot(name: str, manifest: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    """The run's loss curve as SVG text."""
    steps, losses = [float(line["step"]) for line in lines], [line["loss"] for line in lines]
    before = manifest["results"].get("eval_before")
    held_out = [(0.0, before)] if before is not None else []
    held_out += [(float(line["step"]), line["eval_nll"]) for line in lines if "eval_nll" in line]
    smooth = list(zip(steps, smoothed(losses), strict=True))
    return curve(name, list(zip(steps, losses, strict=True)), smooth, held_out)


def report(
    manifest: dict[str, Any], lines: Sequence[dict[str, Any]], samples: Sequence[Sample], configuration: str
) -> str:
    """The report as Markdown.

    Args:
        manifest: of the finished run.
        lines: of its metrics.
        samples: answers before and after, of `samples.json`.
        configuration: its config.yaml.
    """
    sections = [
        _head(manifest),
        _likelihood(manifest, lines),
        [f"![loss by step]({PLOT})"],
        _data(manifest),
        _training(manifest),
        _samples(samples),
        ["## Configuration", "", *_fenced(configuration, "yaml")],
    ]
    return "\n".join("\n".join(section) + "\n" for section in sections if section)


def _head(manifest: dict[str, Any]) -> list[str]:
    base, results = manifest["base"], manifest["results"]
    named = f"{base['repo']}@{base['revision']}" if "repo" in base else base["path"]
    line = (
        f"An adapter for `{named}`, preset `{manifest['config']['preset']}`: {results['steps']} steps, "
        f"mean loss {results['train_loss']:.4f} nats per trained token."
    )
    return [f"# {manifest['name']}", "", line, *_parent(manifest.get("from"))]


def _parent(parent: dict[str, Any] | None) -> list[str]:
    """Which run this one went on from, and with what of it."""
    if not parent:
        return []
    how = "trains its adapter on"
    if parent["adapter"] == "merge":
        how = f"keeps its adapter (rank {parent['rank']}) as it is, stacked with the new one into one of both ranks"
    return ["", f"It goes on from `{parent['run']}` (stage {parent['stage']}, {parent['steps']} steps) and {how}."]


def _likelihood(manifest: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[str]:
    results = manifest["results"]
    if "eval_nll" not in results:
        return ["## Did it work?", "", "Nothing was held out (`--eval 5%` would), so only the training loss is known."]
    before, after, step = results["eval_before"], results["eval_nll"], results["adapter_step"]
    rows = [
        ["before" if manifest.get("from") else "base", "", f"{before:.4f}", f"{math.exp(before):.3f}"],
        *(
            [
                "**adapter**" if line["step"] == step else "",
                str(line["step"]),
                f"{line['eval_nll']:.4f}",
                f"{math.exp(line['eval_nll']):.3f}",
            ]
            for line in _few([line for line in lines if "eval_nll" in line], step)
        ),
    ]
    verdict = (
        f"Held-out answers went from {before:.4f} to {after:.4f} nats per assistant token "
        f"({manifest['rows']['held_out']} conversations, {results['eval_tokens']} tokens)"
    )
    verdict += "." if after < before else ": **the training made them less likely.**"
    return [
        "## Did it work?",
        "",
        f"{verdict} {kept(results, manifest['steps'])}",
        "",
        *_table(["", "step", "nats per token", "perplexity"], rows),
    ]


def kept(results: dict[str, Any], planned: int) -> str:
    """Which step's adapter the run holds, and why, as a sentence."""
    step, reached = results["adapter_step"], results["steps"]
    early = f" Training stopped early, after {reached} of {planned} steps." if reached < planned else ""
    if step == reached:
        return f"The adapter is that of the last step, {step}.{early}"
    return f"The adapter is that of step {step}, the best measured; the last was step {reached}.{early}"


def _few(lines: Sequence[dict[str, Any]], step: int, most: int = 20) -> list[dict[str, Any]]:
    """At most about `most` of the measurements, the adapter's and the last among them."""
    stride = -(-len(lines) // most) or 1
    return [line for i, line in enumerate(lines) if (i + 1) % stride == 0 or line["step"] == step or line is lines[-1]]


def _data(manifest: dict[str, Any]) -> list[str]:
    rows, noise = manifest["rows"], manifest["noise"]
    facts = [
        [
            f"`{file['path']}`",
            f"{file['format']}, {file['conversations']} conversations"
            + (", held out" if file["use"] == "eval" else ""),
        ]
        for file in manifest["data"]
    ]
    facts += [
        ["rows trained", f"{rows['training']}, the longest of {rows['longest']} tokens"],
        ["conversations held out", str(rows["held_out"])],
        ["tokens an epoch", f"{rows['tokens']}, {rows['trained_tokens']} of them trained"],
        ["left out as too long", _sources(rows["dropped"])],
        ["cut, losing the end of a turn", _sources(rows["cut"])],
        ["left out, no token to train", _sources(rows["masked"])],
        ["left out as bad rows", _sources([row["source"] for row in rows.get("refused", ())])],
    ]
    if noise["units"]:
        moved = f"{noise['share_moved']:.1%} of {noise['units']} units of user text (first epoch)"
        facts.append(["moved by the noise", moved])
    notes = ["- " + note.replace("<", "\\<") for note in manifest.get("notes", ())]
    return ["## Data", "", *_table(["", ""], facts), *(["", *notes] if notes else [])]


def _sources(sources: Sequence[str], shown: int = 5) -> str:
    if not sources:
        return "0"
    listed = ", ".join(source.rpartition("/")[2] for source in sources[:shown])
    return f"{len(sources)}: {listed}" + (", ..." if len(sources) > shown else "")


def _training(manifest: dict[str, Any]) -> list[str]:
    precision, results, timings = manifest["precision"], manifest["results"], manifest["timings"]
    facts = [
        ["backend", f"{manifest['backend']} on {manifest['device']}"],
        ["base weights", _base_weights(precision)],
        ["adapter", f"{manifest['trainable_parameters']} parameters in {precision['adapter']}"],
        ["time", f"{timings['total']:.0f} s in all, {timings.get('train', 0.0):.0f} s of training"],
    ]
    if results.get("peak_memory_bytes"):
        expected = results.get("peak_memory_estimate", 0) / 2**20
        more = f" ({expected:.0f} were expected, freed memory that is kept aside)" if expected else ""
        facts.append(["peak memory", f"{results['peak_memory_bytes'] / 2**20:.0f} MiB{more}"])
    versions = ("ftllm", "torch", "transformers", "peft", "trl", "unsloth")
    known = manifest["versions"]
    facts.append(["versions", ", ".join(f"{name} {known[name]}" for name in versions if name in known)])
    return ["## Training", "", *_table(["", ""], facts)]


def _base_weights(precision: dict[str, Any]) -> str:
    """What was trained on, and what the adapter is merged into."""
    text = f"{precision['weights']}, computed in {precision['compute']}"
    into = precision.get("merged_into")
    if into in (None, precision["weights"]):
        return text
    return f"{text}; the adapter is merged into the base's own {into} weights"


def _samples(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return []
    origin = "held out" if samples[0]["held_out"] else "from the training data (nothing was held out)"
    lines = [f"## {len(samples)} answers before and after", "", f"Greedy; prompts {origin}; `[...]` marks a cut."]
    for sample in samples:
        lines += ["", f"### {sample['source'].rpartition('/')[2]}"]
        for message in sample["messages"]:
            lines += ["", f"{message['role']}:", *_fenced(message["content"])]
        for title in ("before", "after"):
            lines += ["", f"{title}:", *_fenced(sample[title])]
        lines += ["", "in the data:", *_fenced(sample["expected"])]
    return lines


def _fenced(text: str, language: str = "") -> Iterator[str]:
    """Text as a code block whose fence is longer than any in it: nothing in it is read as Markdown or HTML."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield fence + language
    yield from text.strip("\n").split("\n")
    yield fence


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
