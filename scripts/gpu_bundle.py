"""What `gpu_check.py` needs on a machine without a network, in one directory of about 19 MB.

    python scripts/gpu_bundle.py .gpu                 # for Python 3.12 and CUDA 13.0, beside torch and transformers
    python scripts/gpu_bundle.py .gpu --python 3.11 --cuda 12.8

Wheels of what such a machine still lacks, in the versions installed here, and llama.cpp's sources. Both are cut down to
what the check uses: of bitsandbytes the one CUDA library, of Unsloth not its studio, of llama.cpp what its libraries,
llama-bench and the converter are made from; its Python bindings go without a library, for that is built there.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from ftllm.export import fetch

# Machines lent by the minute come with torch, transformers, accelerate, safetensors, sentencepiece and what these need.
PACKAGES = (
    "trl", "peft", "datasets", "dill", "multiprocess", "unsloth", "unsloth_zoo",
    "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typer", "rich", "platformdirs",
    "gguf", "diskcache",
)  # fmt: skip
ELSEWHERE = ("bitsandbytes==0.50.2", "cut_cross_entropy", "msgspec")  # what only a GPU needs, and is not installed here
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
SOURCES = re.compile(
    r"(CMakeLists\.txt|LICENSE|convert_\w+\.py|(cmake|common|conversion|gguf-py|include|licenses|src|vendor)/.*"
    r"|tools/(?!ui/|server/).*|ggml/(CMakeLists\.txt|(cmake|include)/.*)"
    r"|ggml/src/([^/]+|ggml-(cpu|cuda)/.*))"
)
ARCHIVE = "llama.cpp.tar.xz"


def kept(name: str, cuda: str) -> bool:
    """Whether the check uses a file of a wheel."""
    if name.startswith(("studio/", "unsloth_cli/")):
        return False
    library = re.fullmatch(r"bitsandbytes/libbitsandbytes_([a-z]+)(\d*)\.so", name)
    return library is None or library[1] == "cpu" or (library[1], library[2]) == ("cuda", cuda)


def cut(wheel: Path, wanted: Callable[[str], bool]) -> None:
    """Leave files out of a wheel, and out of its list of files."""
    with zipfile.ZipFile(wheel) as whole:
        files = {name: whole.read(name) for name in whole.namelist() if wanted(name)}
        if len(files) == len(whole.namelist()):
            return
    write_wheel(wheel, {name: content for name, content in files.items() if not name.endswith(".dist-info/RECORD")})


def write_wheel(path: Path, files: Mapping[str, bytes]) -> None:
    """A wheel of `files`, with the RECORD that lists them."""
    (information,) = {name.partition("/")[0] for name in files if ".dist-info/" in name}
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}\n")
        wheel.writestr(f"{information}/RECORD", "".join([*lines, f"{information}/RECORD,,\n"]))


def download(wheels: Path, packages: Iterable[str], python: str) -> None:
    """Their wheels for Linux on x86-64, and not those of what they need."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--dest", str(wheels)]
    command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    subprocess.run([*command, *packages], check=True)


def bindings(sdist: tarfile.TarFile, version: str, wheels: Path) -> None:
    """A wheel of llama-cpp-python's Python files alone."""
    top, files = f"llama_cpp_python-{version}", {}
    for member in sdist:
        name = member.name.removeprefix(f"{top}/")
        if re.fullmatch(r"llama_cpp/\w+\.(py|typed)", name):
            files[name] = content_of(sdist, member)
        elif name == "PKG-INFO":
            files[f"{top}.dist-info/METADATA"] = content_of(sdist, member)
    files[f"{top}.dist-info/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: gpu_bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    write_wheel(wheels / f"{top}-py3-none-any.whl", files)


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, member.name
    return file.read()


def sources(sdist: tarfile.TarFile, version: str, path: Path) -> None:
    """Those of llama.cpp, as `llama.cpp/...`."""
    before = f"llama_cpp_python-{version}/vendor/llama.cpp/"
    with tarfile.open(path, "w:xz") as archive:
        for member in sdist:
            name = member.name.removeprefix(before)
            if name != member.name and member.isfile() and SOURCES.fullmatch(name):
                content = sdist.extractfile(member)
                member.name, member.pax_headers = f"llama.cpp/{name}", {}  # which hold long names a second time
                archive.addfile(member, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--python", default="3.12", help="version there")
    parser.add_argument("--cuda", default="13.0", help="version that torch there was built for (torch.version.cuda)")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    for left in (*given.directory.glob("*.whl"), given.directory / ARCHIVE):
        left.unlink(missing_ok=True)
    installed = [f"{name}=={metadata.version(name)}" for name in PACKAGES]
    download(given.directory, [*installed, *ELSEWHERE], given.python)
    for wheel in given.directory.glob("*.whl"):
        cut(wheel, lambda name: kept(name, given.cuda.replace(".", "")))
    version = fetch.runtime_version()
    with tempfile.TemporaryDirectory() as scratch:
        archive = fetch.download(version, Path(scratch))
        for write, place in ((bindings, given.directory), (sources, given.directory / ARCHIVE)):
            with tarfile.open(archive) as sdist:
                write(sdist, version, place)
    files = sorted(given.directory.iterdir(), key=lambda file: -file.stat().st_size)
    for file in files:
        print(f"{file.stat().st_size / 1e6:8.2f} MB  {file.name}")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:8.2f} MB  in all")


if __name__ == "__main__":
    main()
