"""An importance matrix of our own: measured on the model as Q8_0, stored beside the files made with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftllm.export import importance, provenance
from ftllm.export.calibration import Calibration
from ftllm.export.importance import Importance
from ftllm.export.quants import Wanted
from ftllm.export.targets import Target
from ftllm.export.work import Work
from ftllm.files import sha256_file

# Always of this type, so that a matrix depends on nothing but model and text: not on what else is asked for.
MEASURED = Wanted("Q8_0")


@dataclass(frozen=True)
class Collecting:
    """What is measured, on which text, and where it goes."""

    text: Calibration
    directory: Path
    stem: str

    @property
    def path(self) -> Path:
        """The matrix: a name that nothing takes for a model's."""
        return self.directory / f"{self.stem}-imatrix.gguf"

    def scratch(self, chosen: Sequence[Target]) -> list[Target]:
        """The file to measure on, where it is not asked for anyway."""
        asked = any(target.wanted == MEASURED for target in chosen)
        return [] if asked else [Target(MEASURED, self.directory, f"{self.stem}-imatrix")]

    def stored(self, mark: str) -> Importance | None:
        """The matrix of an earlier export, if it was measured on the same; `mark` is its inputs' fingerprint."""
        entry = provenance.read_record(self.directory, "imatrix").get(self.path.name, {})
        if entry.get("inputs_sha256") != mark or not self.path.is_file():
            return None
        return importance.load(self.path) if sha256_file(self.path) == entry.get("sha256") else None

    def collect(self, work: Work, mark: str, model: Path) -> Importance:
        """Measure it on a GGUF, or its first shard, and note it in `export.json`."""
        said = work.collect({**self.text.job(), "model": str(model), "out": str(self.path)})
        matrix = importance.load(self.path)
        entry = {**matrix.record(), "inputs_sha256": mark, "tokens": said["tokens"], "rows": said["rows"]}
        provenance.record(self.directory, {self.path.name: entry}, "imatrix")
        return matrix
