"""From a run, an adapter or a model directory to verified GGUF files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ftllm import __version__, runs
from ftllm.errors import UserError, WorkError
from ftllm.export import calibration, fetch, heldout, importance, ollama, preflight, provenance, quants, source, targets
from ftllm.export.calibration import Calibration
from ftllm.export.child import Child
from ftllm.export.collecting import MEASURED, Collecting
from ftllm.export.lora import read_adapter
from ftllm.export.preflight import Room
from ftllm.export.quants import Wanted
from ftllm.export.results import ExportedFile, entry, kept, planned, published
from ftllm.export.source import Source
from ftllm.export.targets import Target
from ftllm.export.work import Work, Written, in_background
from ftllm.files import sha256_file
from ftllm.progress import Reporter

Verify = Literal["full", "quick", "none"]
WITH, WITHOUT = "+imatrix", "+none"  # rivals for one name


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


@dataclass(frozen=True)
class _Inputs:
    """Everything that decides what comes out, but for the type.

    Attributes:
        matrix: the importance matrix, as soon as there is one.
        judged_on: the text, by its hash, on which rivals were compared.
    """

    model: Source
    converter: fetch.Converter
    adapter_sha256: str | None
    judged_on: str | None
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
                    "label": target.label,
                    "type": target.wanted.type,
                    "importance": target.imatrix,
                }
                for target in wanted
            ],
            "overrides": list(self.overrides),
            "split": self.split,
            "values": provenance.gguf_values(self.model, self.converter, self.adapter_sha256),
            "check": self.verify != "none",
        }

    def fingerprint(self, target: Target, base_hashes: dict[str, str]) -> str:
        """Equal for two exports that make the same file; of rivals, that of the one with an importance matrix."""
        job = self.job([target])
        for place in ("base", "adapter", "converter", "check"):
            job.pop(place)
        matrix = provenance.hash_of(self.matrix.path) if self.matrix and target.imatrix else None
        others = {"converter": self.converter.version, "imatrix": matrix}
        if target.draft:
            others["judged_on"] = self.judged_on
        return provenance.fingerprint(job, base_hashes, self.adapter_sha256, others)

    def matrix_fingerprint(self, text: Calibration, base_hashes: dict[str, str]) -> str:
        """Equal for two exports that measure the same importance matrix."""
        others = {"converter": self.converter.version, "text": text.identity()}
        return provenance.fingerprint({}, base_hashes, self.adapter_sha256, others)


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
    if request.mmproj and not source.has_vision(model.base):
        raise UserError(f"{model.base.name} has no vision part", "leave --mmproj out")
    reporter.say(f"Exporting {describe(model)} to {', '.join(item.label for item in wanted)}")
    reporter.event("source", source=describe(model), types=[item.type for item in wanted])
    text = _text(model, reporter) if verify == "full" else None
    if model.adapter is not None:
        read_adapter(model.adapter)
        _warn_of_template(model, reporter)
    for doubt in model.doubts:
        reporter.warn(doubt)
    converter = fetch.ensure(request.llama_cpp, offline=request.offline, say=reporter.say)
    out = request.out or model.out
    preflight.require_writable(out)
    judged_on = sha256_file(Path(text["path"])) if best and text else None
    adapter_sha256 = provenance.adapter_hash(model)
    inputs = _Inputs(model, converter, adapter_sha256, judged_on, matrix, overrides, split, verify)
    hashes = in_background(lambda: source.check_base(model))
    chosen = [target for item in wanted for target in _targets(item, out, model.name, request.imatrix)]
    collecting = None
    if matrix is None and any(target.imatrix for target in chosen):
        collecting = Collecting(calibration.text_of(model.run, reporter.say), out, model.name)
        mark = inputs.matrix_fingerprint(collecting.text, hashes.result())
        if (stored := collecting.stored(mark)) is not None:
            inputs, collecting = replace(inputs, matrix=stored), None
    made = {} if request.dry_run else _kept(chosen, inputs, hashes, reporter)
    todo = [target for target in chosen if target.wanted not in made]
    if not todo:
        files = tuple(file for item in wanted for file in made[item])
        return ExportResult(model, files, {}, None, verify != "none", time.monotonic() - started, {})
    reference = preflight.reference(source.extent(model.base)) if verify != "none" else None
    if reference is not None and not request.dry_run:
        preflight.require_reference(reference)
    with ExitStack() as stack:
        work = Work(stack, reporter)
        if reference is not None and not request.dry_run:
            base, adapter = str(model.base), str(model.adapter) if model.adapter else None
            work.start_verifier({"base": base, "adapter": adapter, "whole": reference.whole, "text": text})
        scratch = collecting.scratch(chosen) if collecting is not None else []
        worker, plan = work.plan(inputs.job([*todo, *scratch]))
        if hashes.done():
            hashes.result()
        room = preflight.measure(plan, out, reference=reference.memory if reference else 0)
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
        passes = _Passes(work, inputs, hashes, made, reporter)
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


@dataclass
class _Passes:
    """Passes over the model; what they make is added to `made` and `export.json`, file by file."""

    work: Work
    inputs: _Inputs
    hashes: Future[dict[str, str]]
    made: dict[Wanted, list[ExportedFile]]
    reporter: Reporter
    faults: dict[str, list[str]] = field(default_factory=dict)
    rivals: dict[Wanted, Written] = field(default_factory=dict)  # each waits for its own with an importance matrix

    def make(
        self, worker: Child, plan: dict[str, Any], wanted: Sequence[Target], scratch: Sequence[Target] = ()
    ) -> list[Written]:
        """Write, verify and publish the wanted files; those of `scratch` are only written, and returned."""
        matrix = self.inputs.matrix
        written = self.work.write(worker, plan, [*wanted, *scratch], matrix.path if matrix else None)
        for file in self.work.verify(written[: len(wanted)], plan):
            rival = self.rivals.get(file.target.wanted)
            if file.faults:
                file.target.discard()
                if rival is not None:
                    self._publish(self.rivals.pop(file.target.wanted), plan)
                else:
                    self.faults[file.target.label] = file.faults
            elif file.target.draft and not file.target.imatrix:
                self.rivals[file.target.wanted] = file
            else:
                self._publish(file, plan)
        return written[len(wanted) :]

    def _publish(self, file: Written, plan: dict[str, Any]) -> None:
        """Give a file its name, or its rival without an importance matrix where that measures better."""
        inputs, target = self.inputs, file.target
        judged = replace(target, imatrix=True, draft=WITH) if target.draft else target
        compared = {}
        rival = self.rivals.pop(target.wanted, None)
        self.faults.pop(target.wanted.label + WITHOUT, None)
        if rival is not None:
            found = {True: file.figures["kl_divergence"], False: rival.figures["kl_divergence"]}
            compared = {"kl_divergence_with_imatrix": found[True], "kl_divergence_without_imatrix": found[False]}
            file, worse = (file, rival) if found[True] < found[False] else (rival, file)
            worse.target.discard()
            how = "with" if file.target.imatrix else "without"
            self.reporter.say(
                f"{file.target.wanted.label}: KL divergence {found[True]:.4f} with the importance matrix,"
                f" {found[False]:.4f} without; the one {how} is kept"
            )
        files = published(file)
        self.made[file.target.wanted] = files
        imatrix = inputs.matrix.record() if inputs.matrix and file.target.imatrix else None
        said = entry(file, files, plan, imatrix=imatrix, seconds=self.work.timings, verify=inputs.verify)
        common = provenance.entry(inputs.model, inputs.converter, self.hashes.result(), inputs.adapter_sha256)
        mark = inputs.fingerprint(judged, self.hashes.result())
        about = {**said, **compared, "inputs_sha256": mark, **common}
        provenance.record(file.target.directory, {files[0].path.name: about})

    def make_measuring(
        self,
        worker: Child,
        plan: dict[str, Any],
        wanted: Sequence[Target],
        scratch: Sequence[Target],
        collecting: Collecting,
        mark: str,
    ) -> None:
        """In a first pass what needs no importance matrix, then the matrix, then in a second pass the rest."""
        inputs, work = self.inputs, self.work
        first = [target for target in wanted if not target.imatrix]
        second = [target for target in wanted if target.imatrix]
        written: list[Written] = []
        if first or scratch:
            written = self.make(worker, plan, first, scratch)
        measured = [Path(written[0].shards[0]["path"])] if written else self._path_of(MEASURED)
        if not measured:
            return  # the Q8_0 failed its verification
        matrix = collecting.collect(work, mark, measured[0])
        for target in scratch:
            target.discard()
        self.inputs = replace(inputs, matrix=matrix)
        if first or scratch:
            worker, plan = work.plan(self.inputs.job(second))
        self.make(worker, plan, second)

    def _path_of(self, wanted: Wanted) -> list[Path]:
        return [files[0].path for made, files in self.made.items() if made == wanted]


def _targets(wanted: Wanted, out: Path, stem: str, imatrix: str) -> list[Target]:
    """What to make of a type: one file, or with `best` two that are to be compared, where both can be."""
    taken = wanted.takes_importance(imatrix)
    if imatrix != "best" or not taken or wanted.needs_importance:
        return [Target(wanted, out, stem, imatrix=taken)]
    return [Target(wanted, out, stem, draft=WITHOUT), Target(wanted, out, stem, imatrix=True, draft=WITH)]


def _kept(
    chosen: Sequence[Target], inputs: _Inputs, hashes: Future[dict[str, str]], reporter: Reporter
) -> dict[Wanted, list[ExportedFile]]:
    """The types whose files are there already."""
    found = {}
    record = provenance.read_record(chosen[0].directory)
    for target in chosen:
        if (target.imatrix and inputs.matrix is None) or (target.draft and not target.imatrix):
            continue
        if target.recorded(record) is not None:
            files = kept(target, record, inputs.fingerprint(target, hashes.result()), inputs.verify)
            if files:
                reporter.say(f"{target.name} is there already, made from the same inputs")
                found[target.wanted] = files
    return found


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
    return {"path": str(text.path), "origin": text.origin, "max_length": text.max_length, "today": text.today}


def _warn_of_template(model: Source, reporter: Reporter) -> None:
    """The base's tokenizer files are taken; say so where the adapter's own template is another."""
    assert model.adapter is not None
    theirs, ours = model.adapter / "chat_template.jinja", model.base / "chat_template.jinja"
    if theirs.is_file() and ours.is_file() and theirs.read_bytes() != ours.read_bytes():
        reporter.warn(f"{theirs} differs from the base's chat template; the base's is exported")
