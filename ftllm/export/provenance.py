"""What an export says about itself: keys inside the GGUF, and `export.json` beside it."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from ftllm import __version__, runs
from ftllm.errors import UserError
from ftllm.export.fetch import Converter
from ftllm.export.source import Source
from ftllm.files import sha256_file, write_json

RECORD = "export.json"


def gguf_values(source: Source, converter: Converter, adapter_sha256: str | None) -> dict[str, Any]:
    """Keys for the GGUF's metadata. Nothing that differs between two exports of the same inputs: no times, no paths."""
    values: dict[str, Any] = {
        "ftllm.version": __version__,
        "ftllm.converter": f"llama-cpp-python {converter.version}",
        "ftllm.base": source.base_name,
    }
    if adapter_sha256 is not None:
        values |= {
            "general.base_model.count": 1,
            "general.base_model.0.name": source.base_name,
            "ftllm.adapter.sha256": adapter_sha256,
            "ftllm.adapter.trained_in_4_bits": "yes" if source.four_bit else "no",
        }
    if source.run is not None:
        values |= {"general.finetune": source.run.name, "ftllm.run": source.run.name}
        config = source.run.read_manifest().get("config") or {}
        if preset := config.get("preset"):
            values["ftllm.preset"] = str(preset)
    return values


def adapter_hash(source: Source) -> str | None:
    """SHA-256 of the adapter's weights; None for a plain model."""
    return sha256_file(source.adapter / "adapter_model.safetensors") if source.adapter else None


def read_record(directory: Path, section: str = "files") -> dict[str, Any]:
    """Entries of `export.json` by file name, of `files` or of importance matrices; none where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    return _read(directory).get(section, {})


def record(directory: Path, entries: dict[str, dict[str, Any]], section: str = "files") -> Path:
    """Add files' entries to a section of `export.json`, keeping those of other files that are still there."""
    known = {"files": {}, **_read(directory)}
    known[section] = {**known.get(section, {}), **entries}
    path = directory / RECORD
    there = {
        name: {file: entry for file, entry in part.items() if (directory / file).is_file()}
        for name, part in known.items()
    }
    write_json(path, there)
    return path


def _read(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / RECORD
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
        sections["files"] = sections.pop("files")
        return {
            str(section): {str(name): dict(entry) for name, entry in entries.items()}
            for section, entries in sections.items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not what `ftllm export` writes", "move it away, or choose another --out") from None


def fingerprint(
    job: dict[str, Any], base_files: dict[str, str], adapter_sha256: str | None, others: dict[str, Any]
) -> str:
    """SHA-256 of all that decides an output's bytes."""
    inputs = {"job": job, "base_files": base_files, "adapter": adapter_sha256, **others}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode("utf-8")).hexdigest()


@cache
def hash_of(path: Path) -> str:
    """A file's SHA-256, computed once."""
    return sha256_file(path)


def entry(
    source: Source, converter: Converter, base_hashes: dict[str, str], adapter_sha256: str | None
) -> dict[str, Any]:
    """What all files of one export share."""
    return {
        "created": runs.now(),
        "ftllm": __version__,
        "source": {
            "base": source.base_name,
            "base_files": base_hashes,
            "adapter": str(source.adapter) if source.adapter else None,
            "adapter_sha256": adapter_sha256,
            "adapter_trained_in_4_bits": source.four_bit if source.adapter else None,
            "run": source.run.name if source.run else None,
        },
        "converter": {"llama_cpp_python": converter.version, "from": converter.origin},
        "environment": runs.environment(),
    }
