"""From a run, an adapter or a model directory to verified GGUF files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ftllm import __version__, runs
from ftllm.errors import UserError, WorkError
from ftllm.export import (
    calibration,
    checkpoint,
    fetch,
    heldout,
    importance,
    ollama,
    preflight,
    provenance,
    quants,
    source,
    targets,
)
from ftllm.export.collecting import Collecting
from ftllm.export.lora import read_adapter
from ftllm.export.passes import Inputs, Passes, Verify, already_there, targets_of
from ftllm.export.preflight import Room
from ftllm.export.results import ExportedFile, planned
from ftllm.export.source import Source
from ftllm.export.work import Work, in_background
from ftllm.files import sha256_file
from ftllm.progress import Reporter


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for.

    Args:
        given: run, adapter directory or model directory; None is the latest run.
        quants: as `--quant` has them; empty for the default.
        out: directory for the files; None for the run's `gguf/`, else `./gguf`.
        base: base model instead of the one the adapter names.
        imatrix: `none`, `auto`, `best`, or the path of an importance matrix.
        tensor_types: as `--tensor-type` has them, `REGEX=TYPE`.
        split_max_size: largest shard, such as `5G`; None for one file.
        llama_cpp: a llama.cpp checkout whose converter to use.
        mmproj: there must be a vision part, which `extras.export_projector` writes afterwards.
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
    mmproj: bool = False


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
    given = request.imatrix not in ("none", "auto", "best")
    matrix = importance.load(Path(request.imatrix).expanduser()) if given else None
    best = request.imatrix == "best"
    if best and request.verify == "none":
        raise UserError("--imatrix best measures every file, which --verify none forbids", "take --imatrix auto")
    verify: Verify = "full" if best else request.verify
    model = source.resolve(request.given, base=request.base, runs_root=request.runs_root, offline=request.offline)
    if request.mmproj and not checkpoint.has_vision(model.base):
        raise UserError(f"{model.base.name} has no vision part", "leave --mmproj out")
    reporter.say(f"Exporting {describe(model)} to {', '.join(item.label for item in wanted)}")
    reporter.event("source", source=describe(model), types=[item.type for item in wanted])
    text = _text(model, reporter) if verify == "full" else None
    changed = 0
    if model.adapter is not None:
        changed = read_adapter(model.adapter).parameters
        _warn_of_template(model, reporter)
    for doubt in model.doubts:
        reporter.warn(doubt)
    converter = fetch.ensure(request.llama_cpp, offline=request.offline, say=reporter.say)
    out = (request.out or model.out).expanduser()
    preflight.require_writable(out)
    judged_on = sha256_file(Path(text["path"])) if best and text else None
    adapter_sha256 = provenance.adapter_hash(model)
    inputs = Inputs(model, converter, adapter_sha256, judged_on, matrix, overrides, split, verify)
    hashes = in_background(lambda: source.check_base(model))
    chosen = [target for item in wanted for target in targets_of(item, out, model.name, request.imatrix)]
    collecting = None
    if matrix is None and any(target.imatrix for target in chosen):
        collecting = Collecting(calibration.text_of(model.run, reporter.say), out, model.name)
        mark = inputs.matrix_fingerprint(collecting.text, hashes.result())
        if (stored := collecting.stored(mark)) is not None:
            inputs, collecting = replace(inputs, matrix=stored), None
    made, there = ({}, []) if request.dry_run else already_there(chosen, inputs, hashes, reporter)
    again = [item.target for item in there]
    todo = [target for target in chosen if target.wanted not in made and target not in again]
    if not todo and not there:
        files = tuple(file for item in wanted for file in made[item])
        return ExportResult(model, files, {}, None, verify != "none", time.monotonic() - started, {})
    size = checkpoint.extent(model.base)
    reference = preflight.reference(size, full=verify == "full", adapter=changed) if verify != "none" else None
    if reference is not None and not request.dry_run:
        preflight.require_reference(reference)
    with ExitStack() as stack:
        work = Work(stack, reporter)
        if reference is not None and not request.dry_run:
            job = {"base": str(model.base), "adapter": str(model.adapter) if model.adapter else None}
            work.start_verifier({**job, "whole": reference.whole, "text": text})
        scratch = collecting.scratch(chosen) if collecting is not None else []
        worker, plan = work.plan(inputs.job([*todo, *scratch, *again]))
        if hashes.done():
            hashes.result()
        new = plan["files"][: len(todo) + len(scratch)]
        room = preflight.measure(new, plan["largest"], out, reference=reference.memory if reference else 0)
        _tell({**plan, "files": plan["files"][: len(todo)]}, reporter)
        if collecting is not None:
            held = " kept for that time" if scratch else ""
            reporter.say(f"Measuring an importance matrix on {collecting.text.origin}, with the model as Q8_0{held}")
        if request.dry_run:
            hashes.result()
            plan["files"] = plan["files"][: len(todo)]
            files = tuple(
                file for target, item in zip(todo, plan["files"], strict=True) for file in planned(target, item)
            )
            return ExportResult(model, files, plan, room, False, time.monotonic() - started, work.timings)
        preflight.require(room, out)
        stack.enter_context(targets.writing_to(out, model.name))
        passes = Passes(work, inputs, hashes, made, reporter, there=there)
        if collecting is None:
            passes.make(worker, plan, todo)
        else:
            passes.make_measuring(worker, plan, todo, scratch, collecting, mark)
    seconds = time.monotonic() - started
    if passes.faults:
        label, reasons = next(iter(passes.faults.items()))
        passed = f" ({len(made)} other files passed and are kept)" if made else ""
        raise WorkError(
            f"{label} failed its verification and was removed{passed}: {'; '.join(reasons)}",
            "do not use a file like it; --verbose tells more, and `--verify none` skips the check at your own risk",
        )
    _write_ollama(model, out, plan["ollama"], reporter)
    files = tuple(file for item in wanted for file in made[item])
    return ExportResult(model, files, plan, room, verify != "none", seconds, work.timings)


def describe(model: Source) -> str:
    """`run ft-001 (adapter on nano)`, for people."""
    if model.run is not None:
        return f"run {model.run.name} (adapter on {model.base_name})"
    if model.adapter is not None:
        return f"adapter {model.adapter} on {model.base_name}"
    return f"model {model.base}"


def _write_ollama(model: Source, out: Path, said: dict[str, Any], reporter: Reporter) -> None:
    """What Ollama reads beside the files: its Modelfile starts from what `ftllm chat` would take."""
    if reason := said.get("reason"):
        reporter.say(f"No template for Ollama: {reason}")
    of_model = {
        name: entry
        for name, entry in provenance.read_record(out).items()
        if name.startswith(f"{model.name}-") and not entry.get("shards")
    }
    usual = {name for name, entry in of_model.items() if entry["type"] == "Q4_K_M"}
    quantized = {name for name, entry in of_model.items() if entry["type"] not in ("F32", "F16", "BF16")}
    name = max(usual or quantized or of_model, key=lambda name: int(of_model[name]["bytes"]), default=None)
    about = f"{describe(model)}, exported by ftllm {__version__}"
    ollama.write(out, said, out / name if name else None, about)


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


def _text(model: Source, reporter: Reporter) -> dict[str, Any]:
    """What `--verify full` measures on; says so where it is not the model's own held-out data."""
    text = heldout.text_of(model.run)
    if text.own:
        reporter.say(f"Nothing was held out for this model (`ftllm train --eval 5%` does): measuring on {text.origin}")
    return {**asdict(text), "path": str(text.path)}


def _warn_of_template(model: Source, reporter: Reporter) -> None:
    """The base's tokenizer files are taken; say so where the adapter's own template is another."""
    assert model.adapter is not None
    theirs, ours = model.adapter / "chat_template.jinja", model.base / "chat_template.jinja"
    if theirs.is_file() and ours.is_file() and theirs.read_bytes() != ours.read_bytes():
        reporter.warn(f"{theirs} differs from the base's chat template; the base's is exported")
