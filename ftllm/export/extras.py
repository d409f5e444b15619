"""`--adapter-only` and `--mmproj`: a LoRA GGUF instead of a merged model, and the vision part beside one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftllm import files
from ftllm.errors import UserError, WorkError
from ftllm.export import fetch, preflight, provenance, quants, source, targets
from ftllm.export.lora import read_adapter
from ftllm.export.pipeline import ExportRequest, ExportResult, describe
from ftllm.export.preflight import Room
from ftllm.export.results import ExportedFile
from ftllm.export.source import Source
from ftllm.export.work import Work, in_background
from ftllm.progress import Reporter

BITS = {"F32": 32, "F16": 16, "BF16": 16}


def export_adapter(request: ExportRequest, reporter: Reporter) -> ExportResult:
    """Export an adapter as LoRA GGUFs, `STEM-LoRA-F32.gguf`, for `chat --lora` and `llama-cli --lora`.

    Raises:
        UserError: there is no adapter, it does not fit its base, or an option has no meaning here.
        WorkError: a dead process, or a file that failed its verification.
    """
    started = time.monotonic()
    for option, given in {
        "--imatrix": request.imatrix != "none",
        "--tensor-type": bool(request.tensor_types),
        "--split-max-size": request.split_max_size is not None,
    }.items():
        if given:
            raise UserError(f"{option} has no meaning with --adapter-only", "an adapter is small, and not quantized")
    kinds = [item.type for item in quants.parse(request.quants or ("F32",))]
    for kind in kinds:
        if kind not in BITS:
            raise UserError(f"an adapter is not written as {kind}", f"one of {', '.join(BITS)}; it is small")
    model = source.resolve(request.given, base=request.base, runs_root=request.runs_root, offline=request.offline)
    if model.adapter is None:
        raise UserError(f"{model.base} is a whole model, without an adapter", "give a run, or an adapter directory")
    for doubt in model.doubts:
        reporter.warn(doubt)
    read_adapter(model.adapter)
    reporter.say(f"Exporting {describe(model)}, the adapter alone, as {', '.join(kinds)}")
    out = (request.out or model.out).expanduser()
    preflight.require_writable(out)
    hashes = in_background(lambda: source.check_base(model))
    job = {"what": "adapter", "adapter": str(model.adapter)}
    names = {kind: out / f"{model.name}-LoRA-{kind}.gguf" for kind in kinds}
    made = tuple(_made(job, kind, path, model, request, reporter, hashes) for kind, path in names.items())
    verified = request.verify != "none" and not request.dry_run
    return ExportResult(model, made, {}, None, verified, time.monotonic() - started, {})


def export_projector(request: ExportRequest, done: ExportResult, reporter: Reporter) -> ExportResult:
    """Add `mmproj-STEM-F16.gguf`, the vision part, to what an export made, or would make.

    Raises:
        UserError: the vision part is one that llama.cpp does not know.
        WorkError: no room, a dead process, or a file that failed its verification.
    """
    started = time.monotonic()
    model = done.source
    path = (request.out or model.out).expanduser() / f"mmproj-{model.name}-F16.gguf"
    hashes = in_background(lambda: source.check_base(model))
    smallest = min(done.files, key=lambda file: file.bytes)
    beside = next(file.path for file in done.files if file.type == smallest.type)  # of shards, the first
    job = {"what": "projector", "model": str(beside)}
    made = _made(job, "F16", path, model, request, reporter, hashes)
    room = done.room and replace(done.room, disk=done.room.disk + made.bytes)
    seconds = done.seconds + time.monotonic() - started
    return ExportResult(model, (*done.files, made), done.plan, room, done.verified, seconds, done.timings)


def _made(
    job: dict[str, Any], kind: str, path: Path, model: Source, request: ExportRequest, reporter: Reporter, hashes: Any
) -> ExportedFile:
    """One file made by `ftllm.export.side`, checked, published and recorded; of a dry run, what it would be."""
    converter = fetch.ensure(request.llama_cpp, offline=request.offline, say=reporter.say)
    adapter_sha256 = provenance.adapter_hash(model)
    with ExitStack() as stack:
        work = Work(stack, reporter)
        worker = work.start(
            "converting",
            "ftllm.export.side",
            {
                **job,
                "converter": str(converter.root),
                "base": str(model.base),
                "name": model.name,
                "kind": kind,
                "path": str(files.partial_path(path)),
                "values": provenance.gguf_values(model, converter, adapter_sha256),
                "check": request.verify != "none",
            },
        )
        with reporter.task("Reading the checkpoint", None):
            size = work.wait_for(worker, "plan")["bytes"]
        if request.dry_run:
            hashes.result()
            return ExportedFile(path, kind, size, float(BITS[kind]), "")
        preflight.require(Room(size, files.disk_free(path.parent), 0, None), path.parent)
        stack.enter_context(targets.writing_to(path.parent, path.stem))
        stack.callback(lambda: files.partial_path(path).unlink(missing_ok=True))
        worker.send({"go": True})
        with reporter.task(f"Writing {path.name}", None):
            event = work.wait_for(worker, "made")
        base_hashes = hashes.result()
        if event["faults"]:
            raise WorkError(
                f"{path.name} failed its verification and was removed: {'; '.join(event['faults'])}",
                "do not use a file like it; please report this",
            )
        files.publish(path)
    size, digest = path.stat().st_size, files.sha256_file(path)
    entry = {"kind": job["what"], "type": kind, "bytes": size, "sha256": digest, "verify": request.verify}
    provenance.record(
        path.parent,
        {path.name: {**entry, **provenance.entry(model, converter, base_hashes, adapter_sha256)}},
        section="beside",
    )
    reporter.event("verified", type=kind, kind=job["what"], faults=[])
    return ExportedFile(path, kind, size, float(BITS[kind]), digest)
