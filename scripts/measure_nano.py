"""Measure what the nano model's card reports: base, FT, FT with the card's noise, and SFT, three seeds each.

    python scripts/measure_nano.py            # everything; resumes when interrupted
    python scripts/measure_nano.py --table    # only write the table again, from results.json

Every number comes from the command line (`ftllm train`, `ftllm export`, `ftllm eval`), greedy, through Q4_K_M files.
Writes results.json beside the model, and a table into its README.md between the two markers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (3407, 3408, 3409)
QUANT = "Q4_K_M"
MAX_TOKENS = 512  # more than any right reply of this model takes; a loop ends here
# What each arm changes of ft.yaml.
ARMS: dict[str, tuple[str, ...]] = {
    "ft": (),
    "ft-card-noise": ("--set", "noise.unit=card", "--set", "noise.protect=false", "--set", "noise.per_epoch=false"),
    "sft": ("--preset", "sft"),
}
TITLES = {
    "base": "base",
    "ft": "FT (preset `ft`)",
    "ft-card-noise": "FT with the card's noise",
    "sft": "SFT (no noise)",
}
BEGIN, END = "<!-- results: written by scripts/measure_nano.py -->", "<!-- end of results -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nano", type=Path, default=ROOT / "models" / "nano", help="the model's directory")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "measure-nano", help="runs, GGUFs and reports")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="write only the table, from results.json")
    arguments = parser.parse_args()
    results = arguments.nano / "results.json"
    if not arguments.table:
        measured = measure(arguments.nano, arguments.work, arguments.seeds, arguments.arms)
        results.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    table = as_markdown(json.loads(results.read_text(encoding="utf-8")))
    print(table)
    put_between_markers(arguments.nano / "README.md", table)


def measure(nano: Path, work: Path, seeds: Sequence[int], arms: Sequence[str]) -> dict[str, Any]:
    """Train, export and evaluate whatever is not there yet for this very model and data."""
    work = work / fingerprint(nano)
    work.mkdir(parents=True, exist_ok=True)
    base = work / "gguf" / f"{nano.name}-{QUANT}.gguf"
    if not base.is_file():
        ftllm("export", str(nano), "--quant", QUANT, "--out", str(base.parent))
    # The conversations' likelihood in transformers comes with every run; here it is the files that count.
    heldout = [str(path) for name in ("heldout", "heldout_conversations") if (path := nano / f"{name}.jsonl").is_file()]
    measured: dict[str, Any] = {
        "base": evaluate(work / "base.json", base, heldout),
        "base, asked to show its work": evaluate(work / "base-work.json", base, [str(nano / "work.jsonl")]),
        "arms": {},
    }
    for arm in arms:
        measured["arms"][arm] = {}
        for seed in seeds:
            run = work / "runs" / f"{arm}-{seed}"
            train(nano, run, ("--set", f"seed={seed}", *ARMS[arm]))
            gguf = export(run)
            report = evaluate(work / f"{run.name}.json", gguf, heldout)
            manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
            measured["arms"][arm][str(seed)] = {"training": training_facts(manifest), **report}
            measured["versions"] = manifest.get("versions")
    return measured


def fingerprint(nano: Path) -> str:
    """A name for the weights, data and settings, so that results of others are never taken for theirs."""
    names = ["model.safetensors", "ft.yaml", *sorted(path.name for path in nano.glob("*.jsonl"))]
    return hashlib.sha256(b"".join(hashlib.sha256((nano / name).read_bytes()).digest() for name in names)).hexdigest()[
        :12
    ]


def train(nano: Path, run: Path, options: Sequence[str]) -> None:
    """Train a run, unless it is finished; one that was cut off starts anew."""
    manifest = run / "manifest.json"
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")).get("status") == "finished":
        return
    if run.is_dir():
        shutil.rmtree(run)
    ftllm("train", str(nano / "ft.yaml"), "--model", str(nano), "--name", run.name, "--runs", str(run.parent), *options)


def export(run: Path) -> Path:
    """The run's Q4_K_M file, made where it is missing."""
    found = sorted((run / "gguf").glob(f"*-{QUANT}.gguf"))
    if not found:
        ftllm("export", str(run), "--quant", QUANT)
        found = sorted((run / "gguf").glob(f"*-{QUANT}.gguf"))
    return found[0]


def evaluate(report: Path, gguf: Path, data: Sequence[str]) -> dict[str, Any]:
    """The report of `ftllm eval`, made where it is missing; without the replies."""
    if not report.is_file():
        named = [part for path in data for part in ("--data", path)]
        ftllm("eval", str(gguf), *named, "--max-tokens", str(MAX_TOKENS), "--out", str(report), "--quiet")
    whole = json.loads(report.read_text(encoding="utf-8"))
    graded = whole["graded"][0]
    found = {"settings": whole["settings"], "graded": {key: graded[key] for key in ("overall", "tags")}}
    if whole["likelihood"]:
        found["likelihood"] = {key: whole["likelihood"][0][key] for key in ("overall", "tags")}
    return found


def training_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What of a run's manifest belongs into the report."""
    return {key: manifest.get(key) for key in ("results", "noise", "precision")}


def ftllm(*arguments: str) -> None:
    """Run one command; its complaint is ours."""
    print(f"$ ftllm {' '.join(arguments)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ftllm", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    print(f"  {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    if done.returncode:
        raise SystemExit(f"ftllm {arguments[0]} ended with {done.returncode}")


def as_markdown(measured: dict[str, Any]) -> str:
    """Two tables: all prompts by easy and hard, then the hard families."""
    seeds = sorted({seed for arm in measured["arms"].values() for seed in arm})
    arms = {"base": [measured["base"]], **{name: list(arm.values()) for name, arm in measured["arms"].items()}}
    tags = measured["base"]["graded"]["tags"]
    families = [tag for tag in tags if tag not in ("easy", "hard") and tags[tag]["n"] and tag in work_tags(measured)]
    with_nll = all("likelihood" in report for reports in arms.values() for report in reports)
    lines = [
        f"{tags['easy']['n']} easy and {tags['hard']['n']} hard held-out prompts, greedy, through {QUANT}/llama.cpp;",
        f"mean of {len(seeds)} seeds ({', '.join(seeds)}) with the lowest and the highest.",
        "",
        "| | easy right % | hard right % | thinks on easy % | thinks on hard % | tokens, easy | tokens, hard "
        "| unclosed % | looping % |" + (" nats per token |" if with_nll else ""),
        "| --- " * (9 + with_nll) + "|",
    ]
    for name, reports in arms.items():
        cells = [
            shares(reports, "easy", "accuracy"),
            shares(reports, "hard", "accuracy"),
            shares(reports, "easy", "think_rate"),
            shares(reports, "hard", "think_rate"),
            tokens(reports, "easy"),
            tokens(reports, "hard"),
            shares(reports, None, "unclosed"),
            shares(reports, None, "looping"),
        ]
        if with_nll:
            cells.append(
                spread([report["likelihood"]["overall"]["nll_per_token"]["value"] for report in reports], ".3f")
            )
        lines.append(f"| {TITLES.get(name, name)} | " + " | ".join(cells) + " |")
    lines += ["", "Hard families, right %:", "", f"| | {' | '.join(families)} |", "| --- " * (len(families) + 1) + "|"]
    asked = [measured["base, asked to show its work"]]
    for name, reports in {"base": arms["base"], "base, asked to show its work": asked, **arms}.items():
        cells = [shares(reports, family, "accuracy") for family in families]
        lines.append(f"| {TITLES.get(name, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def work_tags(measured: dict[str, Any]) -> list[str]:
    """The hard families' names."""
    return list(measured["base, asked to show its work"]["graded"]["tags"])


def part(report: dict[str, Any], tag: str | None) -> dict[str, Any]:
    graded = report["graded"]
    found: dict[str, Any] = graded["overall"] if tag is None else graded["tags"][tag]
    return found


def shares(reports: Sequence[dict[str, Any]], tag: str | None, metric: str) -> str:
    """A share in percent over the seeds."""
    return spread([100 * part(report, tag)[metric]["value"] for report in reports], ".1f")


def tokens(reports: Sequence[dict[str, Any]], tag: str) -> str:
    """Tokens a reply, thought and answer together, over the seeds."""
    parts = [part(report, tag) for report in reports]
    return spread([found["thought_tokens"]["value"] + found["answer_tokens"]["value"] for found in parts], ".1f")


def spread(values: Sequence[float], form: str) -> str:
    """`90.1 (88.0..92.3)`: the mean, with the lowest and the highest where there are several."""
    mean = format(fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ({format(min(values), form)}..{format(max(values), form)})"


def put_between_markers(card: Path, table: str) -> None:
    """Replace what stands between the markers of a Markdown file."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if BEGIN not in text or END not in text:
        print(f"{card} has no markers; put these two lines into it:\n{BEGIN}\n{END}", file=sys.stderr)
        return
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    card.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
