"""From a run, an adapter or a model directory to verified GGUF files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftllm import runs
from ftllm.errors import WorkError
from ftllm.export import fetch, heldout, importance, preflight, provenance, quants, source, targets
from ftllm.export.lora import read_adapter
from ftllm.export.preflight import Room
from ftllm.export.source import Source
from ftllm.export.targets import Target
from ftllm.export.work import Work, Written, in_background
from ftllm.files import human
from ftllm.progress import Reporter

Verify = Literal["full", "quick", "none"]
ENOUGH = {"none": {"none", "quick", "full"}, "quick": {"quick", "full"}, "full": {"full"}}


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for.

    Args:
        given: run, adapter directory or model directory; None is the latest run.
        quants: as `--quant` has them; empty for the default.
        out: directory for the files; None for the run's `gguf/`, else `./gguf`.
        base: base model instead of the one the adapter names.
        imatrix: `none`, or the path of an importance matrix.
        tensor_types: as `--tensor-type` has them, `REGEX=TYPE`.
        split_max_size: largest shard, such as `5G`; None for one file.
        llama_cpp: a llama.cpp checkout whose converter to use.
    """

    given: str | None = None
    quants: Sequence[str] = ()
    out: Path | None = None
    base: str | None = None
    imatrix: str = "none"
    tensor_types: Sequence[str] = ()
    split_max_size: str | None = None
    verify: Verify = "quick"
    llama_cpp: Path | None = None
    runs_root: Path = runs.DEFAULT_RUNS
    offline: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ExportedFile:
    """One output file, or one shard of several.

    Args:
        bits_per_weight: of all its type's shards together.
        sha256: empty after a dry run.
        figures: the verification's, empty without one.
        imatrix: it was made with an importance matrix.
        kept: it was there already, made from the same inputs.
    """

    path: Path
    type: str
    bytes: int
    bits_per_weight: float
    sha256: str
    figures: dict[str, Any] = field(default_factory=dict)
    shard: int = 1
    shards: int = 1
    imatrix: bool = False
    kept: bool = False


@dataclass(frozen=True)
class ExportResult:
    """What an export made; `plan` and `room` are empty where everything was there already."""

    source: Source
    files: tuple[ExportedFile, ...]
    plan: dict[str, Any]
    room: Room | None
    verified: bool
    seconds: float
    timings: dict[str, float]


@dataclass(frozen=True)
class _Inputs:
    """Everything that decides what comes out, but for the type."""

    model: Source
    converter: fetch.Converter
    adapter_sha256: str | None
    matrix: importance.Importance | None
    overrides: tuple[tuple[str, int], ...]
    split: int | None
    verify: Verify

    def job(self, wanted: Sequence[Target]) -> dict[str, Any]:
        """For the worker."""
        return {
            "base": str(self.model.base),
            "adapter": str(self.model.adapter) if self.model.adapter else None,
            "converter": str(self.converter.root),
            "name": self.model.name,
            "files": [
                {
                    "label": target.wanted.label,
                    "type": target.wanted.type,
                    "importance": target.wanted.takes_importance("given" if self.matrix else "none"),
                }
                for target in wanted
            ],
            "overrides": list(self.overrides),
            "split": self.split,
            "values": provenance.gguf_values(self.model, self.converter, self.adapter_sha256),
            "check": self.verify != "none",
        }

    def fingerprint(self, target: Target, base_hashes: dict[str, str]) -> str:
        """Equal for two exports that make the same file."""
        job = self.job([target])
        for place in ("base", "adapter", "converter", "check"):
            job.pop(place)
        matrix = provenance.hash_of(self.matrix.path) if self.matrix and job["files"][0]["importance"] else None
        return provenance.fingerprint(
            job, base_hashes, self.adapter_sha256, {"converter": self.converter.version, "imatrix": matrix}
        )


def export(request: ExportRequest, reporter: Reporter) -> ExportResult:
    """Export one model to every type asked for.

    Raises:
        UserError: the input cannot be exported as asked.
        WorkError: no room, a dead process, or a file that failed its verification; other files are kept.
    """
    started = time.monotonic()
    wanted = quants.parse(request.quants)
    overrides = quants.parse_tensor_types(request.tensor_types)
    split = quants.parse_size(request.split_max_size) if request.split_max_size is not None else None
    matrix = importance.load(Path(request.imatrix).expanduser()) if request.imatrix != "none" else None
    if matrix is None:
        quants.refuse_without_importance(wanted)
    model = source.resolve(request.given, base=request.base, runs_root=request.runs_root, offline=request.offline)
    reporter.say(f"Exporting {describe(model)} to {', '.join(item.label for item in wanted)}")
    reporter.event("source", source=describe(model), types=[item.type for item in wanted])
    text = _text(model, reporter) if request.verify == "full" else None
    if model.adapter is not None:
        read_adapter(model.adapter)
        _warn_of_template(model, reporter)
    converter = fetch.ensure(request.llama_cpp, offline=request.offline, say=reporter.say)
    out = request.out or model.out
    preflight.require_writable(out)
    inputs = _Inputs(model, converter, provenance.adapter_hash(model), matrix, overrides, split, request.verify)
    hashes = in_background(lambda: source.check_base(model))
    chosen = [Target(item, out, model.name) for item in wanted]
    kept = {} if request.dry_run else _kept(chosen, inputs, hashes, out, request.verify)
    for target in kept:
        reporter.say(f"{target.name} is there already, made from the same inputs")
    todo = [target for target in chosen if target not in kept]
    if not todo:
        files = tuple(file for target in chosen for file in kept[target])
        return ExportResult(model, files, {}, None, request.verify != "none", time.monotonic() - started, {})
    reference = preflight.reference(source.extent(model.base)) if request.verify != "none" else None
    if reference is not None and not request.dry_run:
        preflight.require_reference(reference)
    made: dict[Target, list[ExportedFile]] = dict(kept)
    faults: dict[str, list[str]] = {}
    with ExitStack() as stack:
        work = Work(stack, reporter)
        job = inputs.job(todo)
        if reference is not None and not request.dry_run:
            work.start_verifier(
                {"base": job["base"], "adapter": job["adapter"], "whole": reference.whole, "text": text}
            )
        worker, plan = work.plan(job)
        if hashes.done():
            hashes.result()
        _tell(plan, reporter)
        room = preflight.measure(plan, out, reference=reference.memory if reference else 0)
        if request.dry_run:
            hashes.result()
            files = tuple(
                file for target, item in zip(todo, plan["files"], strict=True) for file in _planned(target, item)
            )
            return ExportResult(model, files, plan, room, False, time.monotonic() - started, work.timings)
        preflight.require(room, out)
        stack.enter_context(targets.writing_to(out, model.name))
        written = work.write(worker, plan, todo, matrix.path if matrix else None)
        common = provenance.entry(model, converter, hashes.result(), inputs.adapter_sha256)
        for file in work.verify(written, plan):
            if file.faults:
                file.target.discard()
                faults[file.target.wanted.label] = file.faults
                continue
            made[file.target] = _published(file)
            mark = inputs.fingerprint(file.target, hashes.result())
            entry = _entry(file, made[file.target], plan, work.timings, request.verify)
            provenance.record(out, {made[file.target][0].path.name: {**entry, "inputs_sha256": mark, **common}})
    seconds = time.monotonic() - started
    if faults:
        label, reasons = next(iter(faults.items()))
        passed = f" ({len(made)} other files passed and are kept)" if made else ""
        raise WorkError(
            f"{label} failed its verification and was removed{passed}: {'; '.join(reasons)}",
            "do not use a file like it; --verbose tells more, and `--verify none` skips the check at your own risk",
        )
    files = tuple(file for target in chosen for file in made[target])
    return ExportResult(model, files, plan, room, request.verify != "none", seconds, work.timings)


def describe(model: Source) -> str:
    """`run ft-001 (adapter on nano)`, for people."""
    if model.run is not None:
        return f"run {model.run.name} (adapter on {model.base_name})"
    if model.adapter is not None:
        return f"adapter {model.adapter} on {model.base_name}"
    return f"model {model.base}"


def _kept(
    chosen: Sequence[Target], inputs: _Inputs, hashes: Any, out: Path, verify: Verify
) -> dict[Target, list[ExportedFile]]:
    """The targets whose files are there already, whole, verified as asked, and made from the same inputs."""
    record = provenance.read_record(out)
    kept = {}
    for target in chosen:
        found = target.recorded(record)
        if found is None:
            continue
        name, entry = found
        same = entry.get("inputs_sha256") == inputs.fingerprint(target, hashes.result())
        if same and entry.get("verify") in ENOUGH[verify] and targets.whole(out, name, entry):
            parts = entry.get("shards") or [{"name": name, "bytes": entry["bytes"], "sha256": entry["sha256"]}]
            kept[target] = [
                ExportedFile(
                    out / part["name"],
                    entry["type"],
                    part["bytes"],
                    entry["bits_per_weight"],
                    part["sha256"],
                    entry.get("verification") or {},
                    number,
                    len(parts),
                    bool(entry.get("imatrix")),
                    kept=True,
                )
                for number, part in enumerate(parts, 1)
            ]
    return kept


def _tell(plan: dict[str, Any], reporter: Reporter) -> None:
    """The plan for whoever listens, and a warning where a type's name misleads."""
    shown = {key: value for key, value in plan.items() if key not in {"event", "merged", "renamed", "names", "seconds"}}
    reporter.event("plan", **shown, merged=len(plan["merged"]))
    reporter.detail(f"{plan['architecture']}: {plan['tensors']} tensors, {len(plan['merged'])} changed by the adapter")
    for file in plan["files"]:
        if file["fallbacks"]:
            reporter.warn(
                f"{file['type']}: {file['fallbacks']} of {plan['tensors']} tensors have rows that do not divide"
                f" into its blocks and take a larger type: really {file['bits_per_weight']:.2f} bits per weight"
            )


def _planned(target: Target, file: dict[str, Any]) -> list[ExportedFile]:
    """What a dry run says will be there."""
    shards = file["shards"]
    return [
        ExportedFile(
            path,
            file["type"],
            file["bytes"] // shards,
            file["bits_per_weight"],
            "",
            {},
            number,
            shards,
            file["imatrix"],
        )
        for number, path in enumerate(target.finals(shards), 1)
    ]


def _published(file: Written) -> list[ExportedFile]:
    """Give a file that passed, or its shards, the final name."""
    paths = file.target.publish(len(file.shards))
    bits = file.plan["bits_per_weight"]
    return [
        ExportedFile(
            path,
            file.plan["type"],
            shard["bytes"],
            bits,
            shard["sha256"],
            file.figures,
            number,
            len(paths),
            file.plan["imatrix"],
        )
        for number, (path, shard) in enumerate(zip(paths, file.shards, strict=True), 1)
    ]


def _entry(
    file: Written, made: list[ExportedFile], plan: dict[str, Any], timings: dict[str, float], verify: Verify
) -> dict[str, Any]:
    """What `export.json` says about one type's file, under its name or its first shard's."""
    shards = [{"name": item.path.name, "bytes": item.bytes, "sha256": item.sha256} for item in made]
    return {
        "type": file.plan["type"],
        "bytes": sum(item.bytes for item in made),
        "sha256": made[0].sha256,
        **({"shards": shards} if len(shards) > 1 else {}),
        "imatrix": file.plan["imatrix"],
        "bits_per_weight": file.plan["bits_per_weight"],
        "tensor_types": file.plan["types"],
        "fallbacks": file.plan["fallbacks"],
        "architecture": plan["architecture"],
        "parameters": plan["parameters"],
        "tensors": plan["tensors"],
        "tensors_changed_by_adapter": len(plan["merged"]),
        "largest_tensor_error": file.largest_error,
        "mean_tensor_errors": file.mean_errors,
        "verify": verify,
        "verification": file.figures or None,
        "seconds": dict(timings),
    }


def _text(model: Source, reporter: Reporter) -> dict[str, Any]:
    """What `--verify full` measures on; says so where it is not the model's own held-out data."""
    text = heldout.text_of(model.run)
    if text.own:
        reporter.say(f"Nothing was held out for this model (`ftllm train --eval 5%` does): measuring on {text.origin}")
    return {"path": str(text.path), "origin": text.origin, "max_length": text.max_length}


def _warn_of_template(model: Source, reporter: Reporter) -> None:
    """The base's tokenizer files are taken; say so where the adapter's own template is another."""
    assert model.adapter is not None
    theirs, ours = model.adapter / "chat_template.jinja", model.base / "chat_template.jinja"
    if theirs.is_file() and ours.is_file() and theirs.read_bytes() != ours.read_bytes():
        reporter.warn(f"{theirs} differs from the base's chat template; the base's is exported")


def summary(file: ExportedFile) -> str:
    """One line about a finished file."""
    line = f"{file.path}  {human(file.bytes)}, {file.bits_per_weight:.2f} bits per weight"
    if file.figures:
        line += f", KL divergence {file.figures['kl_divergence']:.4f}, same top token {file.figures['same_top']:.1%}"
    return line
