"""Passes over a model: what is asked for becomes files, each verified, published and recorded by itself."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ftllm.export import fetch, importance, provenance
from ftllm.export.calibration import Calibration
from ftllm.export.child import Child
from ftllm.export.collecting import MEASURED, Collecting
from ftllm.export.quants import Wanted
from ftllm.export.results import ENOUGH, ExportedFile, There, entry, published, recorded_files, whole
from ftllm.export.source import Source
from ftllm.export.targets import Target
from ftllm.export.work import Work, Written
from ftllm.progress import Reporter

Verify = Literal["full", "quick", "none"]
WITH, WITHOUT = "+imatrix", "+none"  # rivals for one name


@dataclass(frozen=True)
class Inputs:
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
        others = {"converter": self.converter.identity, "imatrix": matrix}
        if target.draft:
            others["judged_on"] = self.judged_on
        return provenance.fingerprint(job, base_hashes, self.adapter_sha256, others)

    def matrix_fingerprint(self, text: Calibration, base_hashes: dict[str, str]) -> str:
        """Equal for two exports that measure the same importance matrix."""
        others = {"converter": self.converter.identity, "text": text.identity()}
        return provenance.fingerprint({}, base_hashes, self.adapter_sha256, others)


@dataclass
class Passes:
    """Passes over the model; what they make is added to `made` and `export.json`, file by file."""

    work: Work
    inputs: Inputs
    hashes: Future[dict[str, str]]
    made: dict[Wanted, list[ExportedFile]]
    reporter: Reporter
    faults: dict[str, list[str]] = field(default_factory=dict)
    rivals: dict[Wanted, Written] = field(default_factory=dict)  # each waits for its own with an importance matrix
    there: list[There] = field(default_factory=list)  # to be verified where they are

    def make(
        self, worker: Child, plan: dict[str, Any], wanted: Sequence[Target], scratch: Sequence[Target] = ()
    ) -> list[Written]:
        """Write, verify and publish the wanted files; those of `scratch` are only written, and returned.

        What is there already and passed less than is asked for is verified too, where it is.
        """
        matrix = self.inputs.matrix
        written = []
        if wanted or scratch:
            written = self.work.write(worker, plan, [*wanted, *scratch], matrix.path if matrix else None)
        there, self.there = {item.target: item for item in self.there}, []
        again = [item.written(plan) for item in there.values()]
        for file in self.work.verify([*written[: len(wanted)], *again], plan):
            rival = self.rivals.get(file.target.wanted)
            if file.target in there:
                self._settle(file, there[file.target])
            elif file.faults:
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

    def _settle(self, file: Written, there: There) -> None:
        """Note what a file that had its name already was found to be; one with faults loses it."""
        directory = file.target.directory
        if file.faults:
            for path in file.target.existing():
                path.unlink()
            provenance.record(directory, {})
            self.faults[file.target.label] = file.faults
            return
        said = {**there.entry, "verify": self.inputs.verify, "verification": file.figures}
        provenance.record(directory, {there.name: said})
        self.made[file.target.wanted] = recorded_files(directory, there.name, said)

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
        if first or scratch or self.there:
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


def targets_of(wanted: Wanted, out: Path, stem: str, imatrix: str) -> list[Target]:
    """What to make of a type: one file, or with `best` two that are to be compared, where both can be."""
    taken = wanted.takes_importance(imatrix)
    if imatrix != "best" or not taken or wanted.needs_importance:
        return [Target(wanted, out, stem, imatrix=taken)]
    return [Target(wanted, out, stem, draft=WITHOUT), Target(wanted, out, stem, imatrix=True, draft=WITH)]


def already_there(
    chosen: Sequence[Target], inputs: Inputs, hashes: Future[dict[str, str]], reporter: Reporter
) -> tuple[dict[Wanted, list[ExportedFile]], list[There]]:
    """The types whose files are there, made from the same inputs: verified as asked, and those to be verified again."""
    found: dict[Wanted, list[ExportedFile]] = {}
    again = []
    record = provenance.read_record(chosen[0].directory)
    for target in chosen:
        if (target.imatrix and inputs.matrix is None) or (target.draft and not target.imatrix):
            continue
        there = None
        if target.recorded(record) is not None:
            there = whole(target, record, inputs.fingerprint(target, hashes.result()))
        if there is None:
            continue
        if there.verified in ENOUGH[inputs.verify]:
            reporter.say(f"{target.name} is there already, made from the same inputs")
            found[target.wanted] = recorded_files(target.directory, there.name, there.entry)
        elif there.verified != "none":  # else the errors of its tensors were not looked at while it was written
            reporter.say(f"{target.name} is there already, made from the same inputs, and is verified again")
            again.append(there)
    return found, again
