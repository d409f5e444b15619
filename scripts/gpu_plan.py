"""What `gpu_check.py` is to do: its commands, and whether they fit what is installed."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import gemma3
from signatures import complaints, source_of

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("unsloth", "hf")
VERSIONS = ("torch", "transformers", "peft", "trl", "unsloth", "unsloth_zoo", "bitsandbytes", "llama-cpp-python")
# Seconds that an arm needs at least: less, and it would be ended before its first step.
NEEDED = {"1B": 60.0, "4B": 90.0, "12B": 150.0, "27B": 300.0}
TOY = {"toy": gemma3.Shape(256, 512, 2, 2, 1, 128, 512, vision=False, head=128)}
HOPPER = "90"
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"  # what GCC 12 makes of AMX crashes, as the Makefile says
PARTS = ["TESTS", "EXAMPLES", "SERVER", "APP"]
FETCH = (
    "from pathlib import Path; from ftllm.export import fetch;"
    " print(fetch.download(fetch.runtime_version(), Path({!r})))"
)


@dataclass(frozen=True)
class Check:
    """What is to be done, and where.

    Attributes:
        scratch: where models, runs and llama.cpp go.
        shapes: of Gemma 3, by name.
        steps: of each training.
        length: tokens of a row.
        bundle: what `gpu_bundle.py` made; None to take what is installed.
        gpu: whether it is done on one; else it is a rehearsal.
    """

    scratch: Path
    shapes: Mapping[str, gemma3.Shape]
    steps: int
    length: int
    bundle: Path | None
    gpu: bool

    @classmethod
    def of(cls, given: argparse.Namespace, scratch: Path) -> Check:
        bundle = given.bundle.resolve() if given.bundle else None
        if given.rehearse:
            return cls(scratch, TOY, min(given.steps, 8), min(given.length, 64), bundle, gpu=False)
        return cls(scratch, {name: gemma3.SHAPES[name] for name in given.shapes}, given.steps, given.length, bundle,
                   gpu=True)  # fmt: skip

    @property
    def runs(self) -> Path:
        return self.scratch / "runs"

    @property
    def data(self) -> Path:
        return self.scratch / "rows.jsonl"

    @property
    def source(self) -> Path:
        """Of llama.cpp."""
        return self.scratch / "source"

    @property
    def binaries(self) -> Path:
        """Of llama.cpp."""
        if self.gpu:
            return self.scratch / "llama.cpp" / "bin"
        from ftllm.export import fetch

        return fetch.tools_root() / "bin"

    def shapes_and_seconds(self) -> Iterator[tuple[str, float]]:
        for shape in self.shapes:
            yield shape, NEEDED.get(shape, 0.0)

    def environment(self) -> dict[str, str]:
        """Of every command: ftllm from here, llama.cpp as built, and no waiting for a network that is not there."""
        found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if self.bundle:
            found |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if not self.gpu:
            found["UNSLOTH_FORCE_CPU"] = "1"
        elif (self.binaries / "libllama.so").is_file():
            found["LLAMA_CPP_LIB_PATH"] = str(self.binaries)
        return found

    def train(self, shape: str, backend: str) -> list[str]:
        """The command that trains one arm; `hf` is given 4 bits too."""
        settings = [f"max_steps={self.steps}", "samples=0", "save_steps=0", "learning_rate=1e-2", "warmup_steps=2"]
        settings += ["load_in_4bit=true", "optimizer=adamw_8bit"] if self.gpu else []
        return [
            sys.executable, "-m", "ftllm", "train", "--model", str(self.scratch / shape), "--data", str(self.data),
            "--preset", "seed", "--backend", backend, "--runs", str(self.runs), "--name", f"{shape}-{backend}",
            "--offline", *[word for setting in settings for word in ("--set", setting)],
        ]  # fmt: skip

    def export(self) -> list[str]:
        """The command that exports the first shape's run."""
        converter = ["--llama-cpp", str(self.source)] if self.gpu or self.bundle else []
        return [sys.executable, "-m", "ftllm", "export", f"{next(iter(self.shapes))}-unsloth", "--runs", str(self.runs),
                "--quant", "Q4_K_M", "--json", *converter]  # fmt: skip

    @property
    def layers(self) -> str:
        return "999" if self.gpu else "0"

    def bench(self, model: Path) -> list[str]:
        return [sys.executable, "-m", "ftllm", "bench", str(model), "--length", "512", "--tokens", "128",
                "--gpu-layers", self.layers, "--json"]  # fmt: skip

    def llama_bench(self, model: Path) -> list[str]:
        return [str(self.binaries / "llama-bench"), "-m", str(model), "-p", "0", "-n", "128", "-d", "512", "-r", "1",
                "-ngl", self.layers, "-o", "json"]  # fmt: skip

    def build(self) -> Iterator[str]:
        """The lines of shell that build llama-bench, and the libraries that it shares with the Python bindings."""
        fresh, unpack = self.scratch / "unpacked", ""
        if self.bundle:
            unpack = f"tar -xJf {shlex.quote(str(self.bundle / 'llama.cpp.tar.xz'))} -C {fresh}"
        elif self.gpu:
            archive = f"$({sys.executable} -c {shlex.quote(FETCH.format(str(self.scratch)))})"
            unpack = f"tar -xzf {archive} -C {fresh} --strip-components 2 --wildcards '*/vendor/llama.cpp'"
        if unpack:
            whole = f"rm -rf {fresh}; mkdir -p {fresh}; {unpack}; mv {fresh}/llama.cpp {self.source}"
            yield f"[ -d {self.source} ] || {{ {whole}; }}"
        if not self.gpu:
            yield f"[ -x {self.binaries}/llama-bench ] || {ROOT}/scripts/build_llama_tools"
            return
        place = self.binaries.parent
        flags = NO_AMX if (platform.system(), platform.machine()) == ("Linux", "x86_64") else ""
        options = [
            "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_CUDA=ON", "-DGGML_CUDA_NCCL=OFF",
            f"-DCMAKE_CUDA_ARCHITECTURES={capability()}-real", "-DLLAMA_OPENSSL=OFF",
            # The driver's own allocator needs a stub of the driver to link with, which not every image has.
            "-DGGML_CUDA_NO_VMM=ON", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}",
            *[f"-DLLAMA_BUILD_{part}=OFF" for part in PARTS],
        ]  # fmt: skip
        if nvcc := compiler():
            options += [f"-DCMAKE_CUDA_COMPILER={nvcc}", *cublas(Path(nvcc).resolve().parents[1])]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        yield shlex.join(["cmake", "-S", str(self.source), "-B", str(place), *generator, *options])
        # Trainings under way give kernels to the GPU from one core each, and the machine is theirs first.
        jobs = max(1, len(os.sched_getaffinity(0)) - 3)
        yield shlex.join(["cmake", "--build", str(place), "--parallel", str(jobs), "--target", "llama-bench"])


def compiler() -> str | None:
    """CUDA's, where there is one."""
    return shutil.which("nvcc") or next(filter(os.path.exists, ["/usr/local/cuda/bin/nvcc"]), None)


def cublas(toolkit: Path) -> list[str]:
    """What CMake must be told where the compiler came without cuBLAS, and torch with it, in a wheel."""
    if any(toolkit.glob("include/cublas_v2.h")) or any(toolkit.glob("targets/*/include/cublas_v2.h")):
        return []
    for header in (header for place in sys.path for header in Path(place).glob("nvidia/*/include/cublas_v2.h")):
        found = {name: sorted(header.parents[1].glob(f"lib/lib{name}.so*")) for name in ("cublas", "cublasLt")}
        if all(found.values()):
            libraries = [f"-DCUDA_{name}_LIBRARY={files[0]}" for name, files in found.items()]
            return [*libraries, f"-DCMAKE_CUDA_FLAGS=-isystem {header.parent}"]
    return []


def capability() -> str:
    """The compute capability of the GPU here, `90` for 9.0; Hopper's where there is none."""
    import torch

    if not torch.cuda.is_available():
        return HOPPER
    return "".join(map(str, torch.cuda.get_device_capability()))


def machine(check: Check) -> dict[str, Any]:
    """What it is measured on."""
    import torch

    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {"gpu": None}
    if check.gpu:
        properties = torch.cuda.get_device_properties(0)
        found = {
            "gpu": properties.name,
            "capability": f"sm_{capability()}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return found | {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def plan(check: Check) -> Iterator[str]:
    """What would be done, a line each."""
    existing = next(place for place in (check.scratch, *check.scratch.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if check.bundle:
        yield f"install  the wheels in {check.bundle}"
    for line in check.build():
        yield f"build    {line}"
    for number, (name, shape) in enumerate(check.shapes.items()):
        yield f"make     Gemma 3 {name}, random, {gemma3.size(shape) / 1e9:.1f} GB of {free / 1e9:.1f} free"
        for backend in BACKENDS:
            yield f"train    {shlex.join(check.train(name, backend)[2:])}"
        if not number:
            model = check.runs / f"{name}-unsloth" / "gguf" / "MODEL-Q4_K_M.gguf"
            yield f"export   {shlex.join(check.export()[2:])}"
            yield f"measure  {shlex.join(check.bench(model)[2:])}"
            yield f"measure  {shlex.join(check.llama_bench(model))}"


def unfit(check: Check) -> list[str]:
    """What of the plan does not fit what is installed, found without importing Unsloth and without a GPU."""
    from ftllm.train.backend import Device
    from ftllm.train.config import resolve
    from ftllm.train.settings import Setting
    from ftllm.train.unsloth import adapting, environment, loading

    given = {"model": "m", "data": ["d"], "preset": "seed"}
    config = resolve([{key: Setting(value, "gpu_check") for key, value in given.items()}])
    device = Device("cuda", "bfloat16", four_bit=True, eight_bit=True)
    calls = [
        ("unsloth.models.loader", "FastModel.from_pretrained", loading(check.scratch, config, device), ()),
        ("unsloth.models.vision", "FastBaseModel.get_peft_model", adapting(config), ("model",)),
    ]
    found: list[str] = []
    try:
        for module, name, arguments, positional in calls:
            print(f"call  {name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
            found += complaints(module, name, arguments, *positional)
        text = "".join(
            path.read_text(encoding="utf-8")
            for package in ("unsloth", "unsloth_zoo")
            for path in source_of(package).parent.rglob("*.py")
        )
        found += [f"nothing in unsloth reads {name}" for name in environment() if name not in text]
    except (LookupError, ModuleNotFoundError) as error:
        found.append(str(error))
    first = next(iter(check.shapes))
    trainings = [check.train(first, backend) for backend in BACKENDS]
    for command in (*trainings, check.export(), check.bench(Path("MODEL.gguf"))):
        found += misread(command[3:])
    for command in trainings:  # their settings too
        ended = subprocess.run([*command, "--print-config"], capture_output=True, text=True, env=check.environment())
        if ended.returncode:
            found.append(f"{shlex.join(command[2:])}: {ended.stderr.strip()}")
    return found


def misread(words: list[str]) -> list[str]:
    """What `ftllm` would refuse of a verb and its options."""
    from typer.main import get_command

    from ftllm.cli.main import build

    verb, *options = words
    program: Any = get_command(build(words))
    try:
        program.commands[verb].make_context(verb, options)
    except Exception as error:  # Typer's click, which it may bring itself
        return [f"ftllm {shlex.join(words)}: {getattr(error, 'message', error)}"]
    return []
