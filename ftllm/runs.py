"""A run on disk: one directory a training, with everything needed to understand and repeat it.

runs/<name>/
  manifest.json   inputs' hashes, versions, resolved config, seed, host, timings, results
  config.yaml     the resolved configuration; training from it repeats the run
  adapter/        the PEFT adapter (safetensors) and the base's tokenizer files
  metrics.jsonl   one JSON object a logged step
  samples.json    a few answers before and after training
  heldout.jsonl   the conversations that were held out, as they are measured on
  REPORT.md       what a person should see of it, with loss.svg
  eval.json       what `ftllm eval` measured of it last
  gguf/           what export made
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.files import write_json
from ftllm.values import dataclass

DEFAULT_RUNS = Path("runs")
LIBRARIES = (
    "ftllm",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "unsloth",
    "unsloth_zoo",
    "bitsandbytes",
    "llama-cpp-python",
    "gguf",
    "huggingface-hub",
    "numpy",
)
LOCK = ".lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Run:
    """A run's directory and the names of what lies in it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def held_out(self) -> Path:
        return self.path / "heldout.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "eval.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def gguf(self) -> Path:
        return self.path / "gguf"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest as a dictionary.

        Raises:
            UserError: it is missing or not JSON.
        """
        try:
            value = json.loads(self.manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.path} is not a run: it has no manifest.json", "give a directory made by `ftllm train`"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.manifest} cannot be read: {error}", "the run is damaged; train it again") from None
        if not isinstance(value, dict):
            raise UserError(f"{self.manifest} is not a manifest", "the run is damaged; train it again")
        return value

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest, whole or not at all."""
        write_json(self.manifest, manifest)

    @property
    def finished(self) -> bool:
        """True when training ended and the adapter is whole."""
        return self.manifest.is_file() and self.read_manifest().get("status") == "finished"


def is_run(path: Path) -> bool:
    """Whether `path` is a directory made by `ftllm train`."""
    return (path / "manifest.json").is_file()


def all_runs(root: Path) -> list[Run]:
    """The runs under `root`, oldest first by the time their manifest says they started."""
    if not root.is_dir():
        return []
    found = [Run(path) for path in root.iterdir() if is_run(path)]
    return sorted(found, key=_started)


def _started(run: Run) -> tuple[str, str]:
    try:
        return str(run.read_manifest().get("started", "")), run.name
    except UserError:
        return "", run.name


def latest(root: Path, *, finished: bool = True) -> Run:
    """The newest run under `root`; with `finished`, the newest that ended well.

    Raises:
        UserError: there is none.
    """
    for run in reversed(all_runs(root)):
        if not finished or run.finished:
            return run
    raise UserError(f"no {'finished ' if finished else ''}run in {root}", "start one with `ftllm train`, or name one")


def find(name_or_path: str, root: Path) -> Run | None:
    """The run at a path, or with that name under `root`; None when there is none."""
    for path in (Path(name_or_path), root / name_or_path):
        if is_run(path):
            return Run(path.resolve())
    return None


def create(root: Path, name: str | None, *, stem: str = "run") -> Run:
    """Make a new run's directory; without a name, `<stem>-001`, `-002`, ...

    Raises:
        UserError: the name is unusable or taken, or the place cannot be written.
    """
    if name is not None and not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a run name", "use letters, digits, '.', '_' and '-'")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name is None:
            return Run(_make_numbered(root, re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"))
        path = root / name
        # A training killed before it had begun leaves its lock, and nothing to resume.
        if path.exists() and (not path.is_dir() or any(file.name != LOCK for file in path.iterdir())):
            unfinished = is_run(path) and not Run(path).finished
            going_on = ", or --resume to go on with it" if unfinished else ""
            raise UserError(f"{path} exists already", "choose another --name" + going_on)
        path.mkdir(exist_ok=True)
        return Run(path.resolve())
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror}", "choose another place with --runs DIR") from None


def _make_numbered(root: Path, stem: str) -> Path:
    for number in range(1, 100_000):
        path = root / f"{stem}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path.resolve()
    raise UserError(f"{root} holds too many runs called {stem}", "give a --name")


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run for this process.

    Raises:
        UserError: another process is training it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(run.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{run.name} is being trained by another process"
            raise UserError(message, "wait for it, or stop it first") from None
        yield
    finally:
        os.close(descriptor)


def environment() -> dict[str, Any]:
    """What a later reader needs to repeat a run: versions, host, source revision, UTC time."""
    return {
        "versions": {"python": platform.python_version(), **library_versions()},
        "host": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "git": source_revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result; those not installed are left out."""
    from importlib import metadata

    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


def source_revision() -> str | None:
    """The git commit ftllm's own source is at (`-dirty` when changed); None when installed elsewhere."""
    source = Path(__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds, so that it sorts."""
    return datetime.now(UTC).isoformat()


def day_of(manifest: dict[str, Any]) -> date | None:
    """The day that a run's chat template was told is today; None where its manifest does not say."""
    try:
        return date.fromisoformat(str((manifest.get("config") or {}).get("date")))
    except ValueError:
        return None
