"""What an export made: the files, and what `export.json` says about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftllm.export import targets
from ftllm.export.targets import Target
from ftllm.export.work import Written
from ftllm.files import human
from ftllm.llama.header import read_header

ENOUGH = {"none": {"none", "quick", "full"}, "quick": {"quick", "full"}, "full": {"full"}}


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


def planned(target: Target, file: dict[str, Any]) -> list[ExportedFile]:
    """What a dry run says will be there."""
    paths = target.finals(file["shards"])
    size, bits, imatrix = file["bytes"] // len(paths), file["bits_per_weight"], file["imatrix"]
    return [
        ExportedFile(path, file["type"], size, bits, "", {}, number, len(paths), imatrix)
        for number, path in enumerate(paths, 1)
    ]


def published(file: Written) -> list[ExportedFile]:
    """Give a file that passed, or its shards, the final name."""
    paths, plan = file.target.publish(len(file.shards)), file.plan
    return [
        ExportedFile(
            path,
            plan["type"],
            shard["bytes"],
            plan["bits_per_weight"],
            shard["sha256"],
            file.figures,
            number,
            len(paths),
            plan["imatrix"],
        )
        for number, (path, shard) in enumerate(zip(paths, file.shards, strict=True), 1)
    ]


@dataclass(frozen=True)
class There:
    """A target's files that are there already, byte for byte as `export.json` says.

    Attributes:
        name: what `export.json` calls it: its only file, or the first shard.
        entry: what it says.
    """

    target: Target
    name: str
    entry: dict[str, Any]

    @property
    def verified(self) -> str:
        """How they were verified: `none`, `quick` or `full`."""
        return str(self.entry.get("verify"))

    def written(self, plan: dict[str, Any]) -> Written:
        """The files as if just written, for the verifier; `plan` is the worker's, this target among its files."""
        shards = [
            {**part, "path": str(path), "tensors": len(read_header(path).tensors)}
            for part in parts_of(self.name, self.entry)
            if (path := self.target.directory / part["name"])
        ]
        (planned,) = (file for file in plan["files"] if file["label"] == self.target.label)
        return Written(
            self.target, planned, shards, self.entry["largest_tensor_error"], self.entry["mean_tensor_errors"]
        )


def whole(target: Target, record: dict[str, Any], mark: str) -> There | None:
    """A target's files where they are there, whole, and made from the same inputs.

    Args:
        record: the entries of `export.json`.
        mark: the inputs' fingerprint.
    """
    found = target.recorded(record)
    if found is None or found[1].get("inputs_sha256") != mark or not targets.whole(target.directory, *found):
        return None
    return There(target, *found)


def parts_of(name: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The `name`, `bytes` and `sha256` of each file an entry of `export.json` is about."""
    return entry.get("shards") or [{"name": name, "bytes": entry["bytes"], "sha256": entry["sha256"]}]


def recorded_files(directory: Path, name: str, entry: dict[str, Any]) -> list[ExportedFile]:
    """What was made earlier, as an entry of `export.json` has it."""
    parts = parts_of(name, entry)
    return [
        ExportedFile(
            directory / part["name"],
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


def entry(
    file: Written,
    made: Sequence[ExportedFile],
    plan: dict[str, Any],
    *,
    imatrix: dict[str, Any] | None,
    seconds: dict[str, float],
    verify: str,
) -> dict[str, Any]:
    """What `export.json` says about one type's file, under its name or its first shard's."""
    shards = [{"name": item.path.name, "bytes": item.bytes, "sha256": item.sha256} for item in made]
    return {
        "type": file.plan["type"],
        "bytes": sum(item.bytes for item in made),
        "sha256": made[0].sha256,
        **({"shards": shards} if len(shards) > 1 else {}),
        "imatrix": imatrix,
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
        "seconds": dict(seconds),
    }


def summary(file: ExportedFile) -> str:
    """One line about a finished file."""
    line = f"{file.path}  {human(file.bytes)}, {file.bits_per_weight:.2f} bits per weight"
    if file.figures:
        line += f", KL divergence {file.figures['kl_divergence']:.4f}, same top token {file.figures['same_top']:.1%}"
    return line
