"""The text an importance matrix is measured on: what a run was trained on, else conversations that come with ftllm.

Never what it held out: that is what the files are then judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ftllm.data.sources import DataFile, load_file
from ftllm.export import heldout
from ftllm.files import sha256_file
from ftllm.llama.model import Model
from ftllm.runs import Run, day_of

OWN = Path(__file__).with_name("calibration.jsonl")
MOST = 32768  # tokens: llama.cpp's users find little to gain beyond 100 chunks of 512
CHUNK = 512  # tokens of a row of plain text, and llama-imatrix's chunk


@dataclass(frozen=True)
class Calibration:
    """Where the conversations are.

    Attributes:
        files: data files, in order.
        held_out: the run's file of conversations that are left out.
        max_length: of training, in tokens.
        origin: what to call them.
        today: the date that the chat template is told: the one it was told in training.
    """

    files: tuple[Path, ...]
    origin: str
    held_out: Path | None = None
    max_length: int | None = None
    today: date = heldout.ANY_DAY

    def job(self) -> dict[str, Any]:
        """For the collecting process."""
        return {
            "files": [str(path) for path in self.files],
            "held_out": str(self.held_out) if self.held_out else None,
            "max_length": self.max_length,
            "origin": self.origin,
            "today": self.today.isoformat(),
        }

    @classmethod
    def of_job(cls, job: dict[str, Any]) -> Calibration:
        """What `job` described."""
        held_out = Path(job["held_out"]) if job["held_out"] else None
        files, today = tuple(map(Path, job["files"])), date.fromisoformat(job["today"])
        return cls(files, job["origin"], held_out, job["max_length"], today)

    def identity(self) -> dict[str, Any]:
        """Equal where the same rows come out."""
        held_out = sha256_file(self.held_out) if self.held_out else None
        files = [sha256_file(path) for path in self.files]
        today = self.today.isoformat()
        return {"files": files, "held_out": held_out, "max_length": self.max_length, "most": MOST, "today": today}


def text_of(run: Run | None, say: Callable[[str], None]) -> Calibration:
    """What a run was trained on; where that is unknown or has changed, our own conversations, and a word about it."""
    if run is None:
        return Calibration((OWN,), "conversations that come with ftllm")
    manifest = run.read_manifest()
    today = day_of(manifest) or heldout.ANY_DAY
    entries = [entry for entry in manifest.get("data") or [] if entry.get("use") == "data"]
    files = tuple(Path(entry["path"]) for entry in entries)
    gone = next((path for path, entry in zip(files, entries, strict=True) if not _same(path, entry)), None)
    if gone is not None or not files:
        reason = f"{gone} is gone or has changed" if gone else "the run does not say what it was trained on"
        say(f"The importance matrix is measured on conversations that come with ftllm: {reason}")
        return Calibration((OWN,), "conversations that come with ftllm", today=today)
    held_out = run.held_out if run.held_out.is_file() else None
    longest = (manifest.get("config") or {}).get("max_length")
    return Calibration(files, f"what {run.name} was trained on", held_out, longest, today)


def rows_of(text: Calibration, model: Model) -> list[list[int]]:
    """Token ids to evaluate, each row a sequence of its own, `MOST` tokens at most."""
    model.today = text.today
    loaded = [load_file(DataFile(path, path.name), lambda _: None)[0] for path in text.files]
    held_out = {item.messages for item in heldout.conversations(text.held_out)} if text.held_out else set()
    found = [item for part in loaded for item in part if item.messages not in held_out]
    rows = [list(row.input_ids) for row in heldout.rows_of(found, model, text.max_length, MOST)]
    if rows:
        return rows
    ids = model.encode(heldout.plain_text(found))[:MOST]  # no chat template, or one that takes none of them
    bos = [model.bos_id] if model.adds_bos and model.bos_id is not None else []
    step = CHUNK - len(bos)
    return [bos + ids[start : start + step] for start in range(0, len(ids), step)]


def _same(path: Path, entry: dict[str, Any]) -> bool:
    return path.is_file() and sha256_file(path) == entry.get("sha256")
