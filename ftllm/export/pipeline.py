"""From a run, an adapter or a model directory to verified GGUF files.

Two processes start at once: the worker converts, merges and quantizes in one pass; the verifier computes in
transformers what the result must predict. A file gets its final name only when the verifier is content.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftllm import files, runs
from ftllm.errors import WorkError
from ftllm.export import fetch, preflight, provenance, quants, source
from ftllm.export.child import Child, Events
from ftllm.export.lora import read_adapter
from ftllm.export.preflight import Room, human
from ftllm.export.source import Source
from ftllm.progress import Reporter

Verify = Literal["quick", "none"]


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for.

    Args:
        given: run, adapter directory or model directory; None is the latest run.
        quants: as `--quant` has them; empty for the default.
        out: directory for the files; None for the run's `gguf/`, else `./gguf`.
        base: base model instead of the one the adapter names.
        llama_cpp: a llama.cpp checkout whose converter to use.
    """

    given: str | None = None
    quants: Sequence[str] = ()
    out: Path | None = None
    base: str | None = None
    verify: Verify = "quick"
    llama_cpp: Path | None = None
    runs_root: Path = runs.DEFAULT_RUNS
    offline: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ExportedFile:
    """One output file; `figures` are the verification's, empty without one."""

    path: Path
    type: str
    bytes: int
    bits_per_weight: float
    sha256: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportResult:
    """What an export made; `files` have empty hashes after a dry run."""

    source: Source
    files: tuple[ExportedFile, ...]
    plan: dict[str, Any]
    room: Room
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
    model = source.resolve(request.given, base=request.base, runs_root=request.runs_root, offline=request.offline)
    reporter.say(f"Exporting {describe(model)} to {', '.join(wanted)}")
    reporter.event("source", source=describe(model), types=wanted)
    if model.adapter is not None:
        read_adapter(model.adapter)
        _warn_of_template(model, reporter)
    converter = fetch.ensure(request.llama_cpp, offline=request.offline, say=reporter.say)
    out = request.out or model.out
    work = _Work(
        model, converter, wanted, {quant: out / f"{model.name}-{quant}.gguf" for quant in wanted}, request.verify
    )
    if work.verifying and not request.dry_run:
        preflight.require_reference(source.parameters(model.base))
    with ExitStack() as stack:
        work.start(stack, reporter, dry_run=request.dry_run)
        plan = work.wait_for_plan(reporter)
        room = preflight.measure(plan, out, verify=request.verify != "none")
        for file in plan["files"]:
            if file["fallbacks"]:
                reporter.warn(
                    f"{file['type']}: {file['fallbacks']} of {plan['tensors']} tensors have rows that do not divide"
                    f" into its blocks and take a larger type: really {file['bits_per_weight']:.2f} bits per weight"
                )
        if request.dry_run:
            work.base_hashes.result()
            exported = [work.exported(file, "", {}) for file in plan["files"]]
            return ExportResult(model, tuple(exported), plan, room, False, time.monotonic() - started, work.timings)
        preflight.require(room, out)
        written = work.write(plan, out, reporter)
        figures, faults = work.verify(written, plan, reporter)
        hashes = work.base_hashes.result()
        exported = work.publish(plan, written, figures, faults)
    seconds = time.monotonic() - started
    if exported:
        common = provenance.entry(model, converter, hashes, work.adapter_sha256)
        entries = {
            file.path.name: _entry(file, common, plan, written, work.timings, request.verify) for file in exported
        }
        provenance.record(out, entries)
    if faults:
        quant, reasons = next(iter(faults.items()))
        kept = f" ({len(exported)} other files passed and are kept)" if exported else ""
        raise WorkError(
            f"{quant} failed its verification and was removed{kept}: {'; '.join(reasons)}",
            "do not use a file like it; --verbose tells more, and `--verify none` skips the check at your own risk",
        )
    return ExportResult(model, tuple(exported), plan, room, request.verify != "none", seconds, work.timings)


def describe(model: Source) -> str:
    """`run ft-001 (adapter on nano)`, for people."""
    if model.run is not None:
        return f"run {model.run.name} (adapter on {model.base_name})"
    if model.adapter is not None:
        return f"adapter {model.adapter} on {model.base_name}"
    return f"model {model.base}"


class _Work:
    """The two processes and the files between them."""

    def __init__(
        self, model: Source, converter: fetch.Converter, wanted: tuple[str, ...], paths: dict[str, Path], verify: Verify
    ) -> None:
        self.model = model
        self.converter = converter
        self.quants = wanted
        self.paths = paths
        self.verifying = verify != "none"
        self.adapter_sha256 = provenance.adapter_hash(model)
        self.timings: dict[str, float] = {}
        self.events = Events()
        self.worker: Child
        self.verifier: Child | None = None
        self.ready = False
        self.base_hashes: Future[dict[str, str]]

    def start(self, stack: ExitStack, reporter: Reporter, *, dry_run: bool) -> None:
        """Start everything; whatever happens, the processes end and partial files go."""
        stack.callback(self._remove_partials)
        self.base_hashes = _in_background(lambda: source.check_base(self.model))
        adapter = str(self.model.adapter) if self.model.adapter else None
        both = {"base": str(self.model.base), "adapter": adapter}
        job = {
            **both,
            "converter": str(self.converter.root),
            "name": self.model.name,
            "quants": list(self.quants),
            "values": provenance.gguf_values(self.model, self.converter, self.adapter_sha256),
            "check": self.verifying,
        }
        self.worker = Child("converting", "ftllm.export.worker", job, self.events)
        stack.callback(self.worker.kill)
        stack.callback(lambda: reporter.detail(self.worker.log()))
        if self.verifying and not dry_run:
            verifier = self.verifier = Child("verifying", "ftllm.export.verifier", both, self.events)
            stack.callback(verifier.kill)
            stack.callback(lambda: reporter.detail(verifier.log()))

    def wait_for_plan(self, reporter: Reporter) -> dict[str, Any]:
        """The worker's plan; the base's hashes are looked at as soon as they are there."""
        with reporter.task("Reading the checkpoint", None):
            plan = self._await("plan")
        if self.base_hashes.done():
            self.base_hashes.result()
        self.timings["load"] = plan["seconds"]
        shown = {key: value for key, value in plan.items() if key not in {"event", "merged", "renamed", "seconds"}}
        reporter.event("plan", **shown, merged=len(plan["merged"]))
        reporter.detail(
            f"{plan['architecture']}: {plan['tensors']} tensors, {len(plan['merged'])} changed by the adapter"
        )
        return plan

    def write(self, plan: dict[str, Any], out: Path, reporter: Reporter) -> dict[str, dict[str, Any]]:
        """Let the worker write the partial files; by type, what it says of each."""
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(error, out) from error
        partials = {quant: str(files.partial_path(path)) for quant, path in self.paths.items()}
        self.worker.send({"go": True, "paths": partials})
        total = sum(file["bytes"] for file in plan["files"])
        with reporter.task("Merging and quantizing", total, "bytes") as task:
            written = self._await("written", lambda event: task.update(event["done"], event["tensor"]))
            task.update(total)
        self.timings["write"] = written["seconds"]
        return {file["type"]: file for file in written["files"]}

    def verify(
        self, written: dict[str, dict[str, Any]], plan: dict[str, Any], reporter: Reporter
    ) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
        """Figures of every type, and the faults of those that have any."""
        figures: dict[str, dict[str, Any]] = {quant: {} for quant in self.quants}
        faults: dict[str, list[str]] = {}
        if self.verifier is None:
            return figures, faults
        merged = {new: plan["merged"][old] for old, new in plan["renamed"].items() if new}
        with reporter.task("Verifying", len(self.quants), "files") as task:
            while not self.ready:
                self._await("ready")
            for quant in self.quants:
                order = {
                    "file": str(files.partial_path(self.paths[quant])),
                    "type": quant,
                    "bytes": written[quant]["bytes"],
                    "sha256": written[quant]["sha256"],
                    "tensors": plan["tensors"],
                    "merged": merged,
                }
                self.verifier.send(order)
                result = self._await("verified")
                figures[quant] = result["figures"]
                self.timings[f"verify {quant}"] = result["seconds"]
                if result["faults"]:
                    faults[quant] = result["faults"]
                reporter.event("verified", type=quant, **result["figures"], faults=result["faults"])
                task.advance(1, quant)
        return figures, faults

    def publish(
        self,
        plan: dict[str, Any],
        written: dict[str, dict[str, Any]],
        figures: dict[str, dict[str, Any]],
        faults: dict[str, list[str]],
    ) -> list[ExportedFile]:
        """Give the files that passed their final names."""
        exported = []
        for file in plan["files"]:
            if file["type"] not in faults:
                path = self.paths[file["type"]]
                try:
                    files.publish(path)
                except OSError as error:
                    raise files.storage_error(error, path) from error
                exported.append(self.exported(file, written[file["type"]]["sha256"], figures[file["type"]]))
        return exported

    def exported(self, file: dict[str, Any], sha256: str, figures: dict[str, Any]) -> ExportedFile:
        """The plan's entry for a file as a result."""
        kind = file["type"]
        return ExportedFile(self.paths[kind], kind, file["bytes"], file["bits_per_weight"], sha256, figures)

    def _await(self, wanted: str, progress: Any = None) -> dict[str, Any]:
        """The next `wanted` event; progress is passed on, the verifier's readiness noted."""
        while True:
            _, event = self.events.next()
            if event["event"] == "ready":
                self.ready = True
                self.timings["reference"] = event["seconds"]
            if event["event"] == "progress" and progress is not None:
                progress(event)
            if event["event"] == wanted:
                return event

    def _remove_partials(self) -> None:
        for path in self.paths.values():
            files.partial_path(path).unlink(missing_ok=True)


def _in_background(work: Callable[[], dict[str, str]]) -> Future[dict[str, str]]:
    """Run `work` on a thread that does not keep the program from ending: hashing a large base takes minutes."""
    future: Future[dict[str, str]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="hash", daemon=True).start()
    return future


def _entry(
    file: ExportedFile,
    common: dict[str, Any],
    plan: dict[str, Any],
    written: dict[str, dict[str, Any]],
    timings: dict[str, float],
    verify: Verify,
) -> dict[str, Any]:
    planned = next(item for item in plan["files"] if item["type"] == file.type)
    return {
        "type": file.type,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "bits_per_weight": file.bits_per_weight,
        "tensor_types": planned["types"],
        "fallbacks": planned["fallbacks"],
        "architecture": plan["architecture"],
        "parameters": plan["parameters"],
        "tensors": plan["tensors"],
        "tensors_changed_by_adapter": len(plan["merged"]),
        "largest_tensor_error": written[file.type]["largest_error"],
        "mean_tensor_errors": written[file.type]["mean_errors"],
        "verify": verify,
        "verification": file.figures or None,
        "seconds": timings,
        **common,
    }


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
