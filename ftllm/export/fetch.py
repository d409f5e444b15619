"""Upstream's converter, taken once from the source distribution of the llama-cpp-python that runs here.

llama.cpp's `conversion` package and its `gguf-py` change with every commit, so the converter must be of the very
commit that the runtime was built from. Its source distribution carries both; only those folders are kept, with the
SHA-256 of every file, which is checked again each time they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import platformdirs

from ftllm.errors import UserError, WorkError
from ftllm.files import sha256_file, storage_error, sync_directory, write_json

# SHA-256 of each tested llama-cpp-python source distribution (`pip hash llama_cpp_python-X.tar.gz`).
TESTED = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
MANIFEST = "manifest.json"
CACHED, FETCHED = "cache", "fetched"
LARGEST_FILE = 16 << 20  # the largest file kept is under 1 MB; anything far beyond is not the converter


@dataclass(frozen=True)
class Converter:
    """A usable converter: `root` holds `conversion/` and `gguf-py/`; `origin` says where it came from."""

    root: Path
    version: str
    origin: str

    @cached_property
    def identity(self) -> str:
        """Equal where the same code runs: the version, whose files were checked, or the hash of a checkout's files."""
        if self.origin in (CACHED, FETCHED):
            return self.version
        files = sorted(path for part in ("conversion", "gguf-py/gguf") for path in (self.root / part).rglob("*.py"))
        names = [f"{path.relative_to(self.root).as_posix()} {sha256_file(path)}" for path in files]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


def runtime_version() -> str:
    """The version of the installed llama-cpp-python.

    Raises:
        UserError: there is none.
    """
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        raise UserError("llama-cpp-python is not installed", "pip install llama-cpp-python") from None


def cache_root() -> Path:
    """Where converters are kept: one directory a version in the user's cache."""
    return Path(platformdirs.user_cache_dir("ftllm")) / "converter"


def tools_root() -> Path:
    """Where `scripts/build_llama_tools` puts llama.cpp's own tools, in `bin/`."""
    return Path(platformdirs.user_cache_dir("ftllm")) / "tools" / runtime_version()


def state(version: str | None = None) -> str:
    """`ready`, `missing` or `damaged`: the cached converter of `version` (default: the runtime's)."""
    root = cache_root() / (version or runtime_version())
    if not root.is_dir():
        return "missing"
    return "ready" if intact(root) else "damaged"


def ensure(
    checkout: Path | None = None, *, offline: bool = False, say: Callable[[str], None] = lambda _: None
) -> Converter:
    """The converter to use: `checkout` if given, else the cached one, else a freshly fetched one.

    Raises:
        UserError: the checkout is not one, the runtime's version is untested, or we are offline without a copy.
        WorkError: the download failed or did not have the expected hash.
    """
    version = runtime_version()
    if checkout is not None:
        return _from_checkout(checkout, version)
    root = cache_root() / version
    if intact(root):
        return Converter(root, version, CACHED)
    if version not in TESTED:
        raise UserError(
            f"llama-cpp-python {version} is not a version whose converter ftllm knows ({', '.join(sorted(TESTED))})",
            f"pip install llama-cpp-python=={max(TESTED)}, or give --llama-cpp with a llama.cpp checkout of its commit",
        )
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise UserError(
            f"llama.cpp's converter for llama-cpp-python {version} is not in {cache_root()}, and this is offline",
            "run `ftllm doctor --fetch` once with a network, or give --llama-cpp DIR",
        )
    say(f"Fetching llama.cpp's converter (source of llama-cpp-python {version}, about 80 MB, once)")
    return fetch(version)


def fetch(version: str) -> Converter:
    """Download the source distribution, check its hash, and keep the converter in the cache.

    Raises:
        WorkError: no network, a wrong hash, or no space.
    """
    root = cache_root() / version
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{version}-", dir=root.parent) as directory:
            scratch = Path(directory)
            archive = download(version, scratch)
            install(archive, version, root)
    except OSError as error:
        raise storage_error(error, root) from error
    return Converter(root, version, FETCHED)


def install(archive: Path, version: str, root: Path) -> None:
    """Extract the converter from a source distribution to `root`, whole or not at all.

    Two processes may do this at once: the first to rename wins, and the other uses what it finds.

    Raises:
        WorkError: the archive's hash is not the tested one, or it lacks the converter.
    """
    expected = TESTED[version]
    found = sha256_file(archive)
    if found != expected:
        raise WorkError(
            f"{archive.name} has SHA-256 {found}, not {expected}",
            "the download was damaged or tampered with; try again",
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    unpacked = Path(tempfile.mkdtemp(prefix=f".{version}-unpacked-", dir=root.parent))
    try:
        hashes = _extract(archive, f"llama_cpp_python-{version}/vendor/llama.cpp", unpacked)
        write_json(unpacked / MANIFEST, {"version": version, "archive_sha256": found, "files": hashes})
        _take_place(unpacked, root)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def intact(root: Path) -> bool:
    """Whether `root` holds exactly the files of its manifest, each with its recorded SHA-256."""
    try:
        hashes: dict[str, str] = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    present = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != MANIFEST
    }
    return present == set(hashes) and all(sha256_file(root / name) == digest for name, digest in hashes.items())


def _from_checkout(checkout: Path, version: str) -> Converter:
    root = checkout.expanduser().resolve()
    if not (root / "conversion" / "base.py").is_file() or not (root / "gguf-py" / "gguf").is_dir():
        raise UserError(
            f"{checkout} is not a llama.cpp checkout with a conversion package",
            "--llama-cpp takes the top directory of llama.cpp, at the commit the runtime was built from",
        )
    return Converter(root, version, str(root))


def download(version: str, scratch: Path) -> Path:
    """The source distribution in `scratch`, downloaded by pip with its hash required.

    Raises:
        UserError: there is no pip.
        WorkError: no network, a wrong hash, or no space.
    """
    if find_spec("pip") is None:
        raise UserError(
            "fetching llama.cpp's converter needs pip, which is not installed", "pip install 'ftllm[export]'"
        )
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"llama-cpp-python=={version} --hash=sha256:{TESTED[version]}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes"]
    command += ["--requirement", str(wanted), "--dest", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(scratch.glob("llama_cpp_python-*.tar.gz"))
    if done.returncode != 0 or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "pip said nothing")
        if "No space left" in done.stderr:
            raise WorkError(
                f"no space left while fetching llama-cpp-python {version}", f"free space in {scratch.parent}"
            )
        raise WorkError(
            f"llama-cpp-python {version}'s source could not be fetched: {reason.strip()}",
            "check the network and try again, or give --llama-cpp DIR",
        )
    return found[0]


def _wanted(path: PurePosixPath) -> bool:
    top = path.parts[0]
    if top in {"conversion", "gguf-py"}:
        return path.suffix in {".py", ".typed", ".toml"} or path.name == "LICENSE"
    return len(path.parts) == 1 and (top == "LICENSE" or (top.startswith("convert_") and path.suffix == ".py"))


def _extract(archive: Path, prefix: str, target: Path) -> dict[str, str]:
    """Copy the wanted regular files below `prefix` into `target`; their SHA-256 by relative name.

    Links, devices and names that leave `target` are never followed or made: only plain files are read out.
    """
    hashes: dict[str, str] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isreg() or not path.is_relative_to(prefix) or ".." in path.parts:
                continue
            relative = path.relative_to(prefix)
            if not _wanted(relative) or member.size > LARGEST_FILE:
                continue
            source = tar.extractfile(member)
            if source is None:
                continue
            place = target.joinpath(*relative.parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            with source, place.open("wb") as file:
                shutil.copyfileobj(source, file)
            hashes[relative.as_posix()] = sha256_file(place)
    if "conversion/base.py" not in hashes or "gguf-py/gguf/__init__.py" not in hashes:
        raise WorkError(f"{archive.name} does not hold llama.cpp's converter", "give --llama-cpp DIR instead")
    return hashes


def _take_place(unpacked: Path, root: Path) -> None:
    """Rename `unpacked` to `root`; a damaged copy there is moved aside first, an intact one is left alone."""
    for _ in range(10):
        try:
            unpacked.rename(root)
            sync_directory(root.parent)
            return
        except OSError:
            if intact(root):
                return
            aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=root.parent))
            try:
                root.rename(aside / root.name)
            except FileNotFoundError:
                pass
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    raise WorkError(f"{root} cannot be replaced", "remove it and try again")
