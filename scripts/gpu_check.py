"""What only a machine with an NVIDIA GPU can show: Unsloth in 4 bits on Gemma 3 in real shapes, and llama.cpp on CUDA.

    python scripts/gpu_check.py --dry-run             # anywhere: the plan, and whether its calls fit what is installed
    python scripts/gpu_check.py                       # 1B and 4B, half an hour on an H100
    python scripts/gpu_check.py --shapes 1B 4B 12B 27B --scratch /big/disk
    python scripts/gpu_check.py --wheels wheels --sdist llama_cpp_python-0.3.36.tar.gz    # without a network

Weights are random, data are made up, nothing is downloaded but what `--wheels` and `--sdist` do not give. It
  1. installs the wheels, where given, and llama-cpp-python and llama-bench built for CUDA;
  2. trains each shape with the method's own settings (preset `seed`: 4-bit, rank 8, paged 8-bit AdamW), with `unsloth`
     and with `hf` on the same rows, and compares speed, peak memory and losses;
  3. exports the first shape's run to Q4_K_M and verifies it;
  4. measures that file, all layers on the GPU, against llama-bench.
Results go to scripts/bench/results/ as gpu-DATE.json and gpu-DATE.md, after every step, so that nothing is lost where a
later one fails. Without a GPU it does what `--dry-run` does. Exit code 1: something failed, or does not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

import gemma3
from platformdirs import user_cache_path
from signatures import complaints, source_of

RESULTS = ROOT / "scripts" / "bench" / "results"
CHECKED = ("torch", "transformers", "peft", "trl", "unsloth", "unsloth_zoo", "bitsandbytes", "llama-cpp-python")
ROWS = 64
WARM = 2  # steps that do not count
PARITY = 0.02  # largest difference of two backends' losses, relative: both quantize and round in their own way
LEAST_SPEED = 0.98  # of llama-bench


@dataclass
class Check:
    """What is to be done, and what came out so far.

    Attributes:
        scratch: where models and runs go.
        shapes: of Gemma 3, by name.
        steps: of each training.
        length: tokens of a row.
        sdist: llama-cpp-python's source; None to have pip fetch it.
        wheels: a directory to install from; None to take what is installed.
    """

    scratch: Path
    shapes: Sequence[str]
    steps: int
    length: int
    sdist: Path | None
    wheels: Path | None
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        return self.scratch / "runs"

    @property
    def data(self) -> Path:
        return self.scratch / "rows.jsonl"

    def train(self, shape: str, backend: str) -> list[str]:
        """The command that trains one arm; `hf` is given 4 bits too."""
        settings = [f"max_steps={self.steps}", "samples=0", "save_steps=0", "load_in_4bit=true", "optimizer=adamw_8bit"]
        return [
            sys.executable, "-m", "ftllm", "train", "--model", str(self.scratch / shape), "--data", str(self.data),
            "--preset", "seed", "--backend", backend, "--runs", str(self.runs), "--name", f"{shape}-{backend}",
            "--offline", *[word for setting in settings for word in ("--set", setting)],
        ]  # fmt: skip

    def export(self) -> list[str]:
        """The command that exports the first shape's run."""
        return [sys.executable, "-m", "ftllm", "export", f"{self.shapes[0]}-unsloth", "--runs", str(self.runs),
                "--quant", "Q4_K_M", "--json"]  # fmt: skip

    def bench(self, model: Path) -> list[str]:
        return [sys.executable, "-m", "ftllm", "bench", str(model), "--length", "512", "--tokens", "128",
                "--gpu-layers", "999", "--json"]  # fmt: skip

    def llama_bench(self, model: Path) -> list[str]:
        return [str(self.scratch / "llama.cpp" / "bin" / "llama-bench"), "-m", str(model), "-p", "0", "-n", "128",
                "-d", "512", "-r", "1", "-ngl", "999", "-o", "json"]  # fmt: skip

    def build(self) -> Iterator[list[str]]:
        """The commands that build llama.cpp for this machine's GPU: its Python bindings, and llama-bench."""
        source = self.sdist or f"llama-cpp-python=={metadata.version('llama-cpp-python')}"
        alone = ["--no-index", "--no-build-isolation"] if self.sdist else []
        yield [sys.executable, "-m", "pip", "install", "--force-reinstall", "--no-deps", "--no-binary",
               "llama-cpp-python", *alone, str(source)]  # fmt: skip
        place, tree = self.scratch / "llama.cpp", self.scratch / "source" / "vendor" / "llama.cpp"
        yield ["cmake", "-S", str(tree), "-B", str(place), "-DCMAKE_BUILD_TYPE=Release", *CUDA.split(),
               "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
               "-DLLAMA_BUILD_SERVER=OFF"]  # fmt: skip
        yield ["cmake", "--build", str(place), "--parallel", str(os.cpu_count() or 2), "--target", "llama-bench"]


CUDA = "-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native"
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"  # what GCC 12 makes of AMX crashes, as the Makefile says


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
    for backend in ("unsloth", "hf"):
        command = [*check.train("1B", backend), "--print-config"]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            found.append(f"{shlex.join(command[2:])}: {ended.stderr.strip()}")
    return found


def plan(check: Check) -> None:
    """Print what would be done."""
    free = shutil.disk_usage(check.scratch.parent if not check.scratch.exists() else check.scratch).free
    if check.wheels:
        print(f"install  everything in {check.wheels}, without a network")
    for command in check.build():
        print(f"build    {shlex.join(command)}")
    for shape in check.shapes:
        size = gemma3.size(gemma3.SHAPES[shape])
        print(f"make     Gemma 3 {shape}, random, {size / 1e9:.1f} GB of {free / 1e9:.1f} free")
        for backend in ("unsloth", "hf"):
            print(f"train    {shlex.join(check.train(shape, backend)[2:])}")
    print(f"export   {shlex.join(check.export()[2:])}")
    model = check.runs / f"{check.shapes[0]}-unsloth" / "gguf" / "MODEL-Q4_K_M.gguf"
    print(f"measure  {shlex.join(check.bench(model)[2:])}")
    print(f"measure  {shlex.join(check.llama_bench(model))}")


def run(command: Sequence[str], **environment: str) -> str:
    """What a command prints; its last words in the error where it fails."""
    print(f"==> {shlex.join(command)}", file=sys.stderr, flush=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    if ended.returncode:
        raise RuntimeError(f"{shlex.join(command[:8])} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return ended.stdout


def machine() -> dict[str, Any]:
    """What it was measured on."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    versions = {}
    for name in CHECKED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "gpu": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "versions": versions,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def install(check: Check) -> dict[str, Any]:
    """Wheels, and llama.cpp for CUDA."""
    if check.wheels:
        names = [str(path) for path in sorted(check.wheels.glob("*.whl"))]
        run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", *names])
    flags = NO_AMX if (platform.system(), platform.machine()) == ("Linux", "x86_64") else ""
    tree = check.scratch / "source"
    if not tree.exists():
        archive = check.sdist or _fetch_sdist(check.scratch)
        with tarfile.open(archive) as opened:
            opened.extractall(check.scratch / "unpacked", filter="data")
        next((check.scratch / "unpacked").iterdir()).rename(tree)
    for command in check.build():
        run(command, CMAKE_ARGS=CUDA, CFLAGS=flags, CXXFLAGS=flags)
    offloads = "from llama_cpp import llama_supports_gpu_offload as o; print(o())"
    return {"offload": run([sys.executable, "-c", offloads]).strip() == "True"}


def _fetch_sdist(scratch: Path) -> Path:
    from ftllm.export import fetch

    return fetch.download(fetch.runtime_version(), scratch)


def train(check: Check, shape: str) -> dict[str, Any]:
    """One shape by both backends: speed, memory, losses."""
    from train import write_rows

    write_rows(check.data, ROWS, check.length)
    gemma3.make(gemma3.SHAPES[shape], check.scratch / shape)
    arms: dict[str, Any] = {}
    losses = {}
    for backend in ("unsloth", "hf"):
        shutil.rmtree(check.runs / f"{shape}-{backend}", ignore_errors=True)
        run(check.train(shape, backend))
        place = check.runs / f"{shape}-{backend}"
        manifest = json.loads((place / "manifest.json").read_text())
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        spent = lines[-1]["seconds"] - lines[WARM - 1]["seconds"]
        losses[backend] = [line["loss"] for line in lines]
        arms[backend] = {
            "tokens_per_second": round((lines[-1]["tokens"] - lines[WARM - 1]["tokens"]) / spent, 1),
            "peak_memory_gib": round(manifest["results"]["peak_memory_bytes"] / 2**30, 2),
            "estimated_gib": round(manifest["results"]["peak_memory_estimate"] / 2**30, 2),
            "precision": manifest["precision"],
            "trainable_parameters": manifest["trainable_parameters"],
            "drawing_share": round(manifest["timings"]["rows_in_training"] / manifest["timings"]["train"], 5),
        }
    apart = max(abs(a - b) / abs(b) for a, b in zip(losses["unsloth"], losses["hf"], strict=True))
    return {
        **arms,
        "losses": losses,
        "loss_difference": apart,
        "loss_parity": apart <= PARITY,
        "same_trainable": arms["unsloth"]["trainable_parameters"] == arms["hf"]["trainable_parameters"],
    }


def export(check: Check) -> dict[str, Any]:
    """The first shape's run as a verified Q4_K_M."""
    done = json.loads(run(check.export()).splitlines()[-1])
    return {"files": done["files"], "verified": done["verified"], "seconds": done["seconds"]}


def speed(check: Check, rounds: int = 3) -> dict[str, Any]:
    """The engine against llama-bench, in turn, all layers on the GPU; medians."""
    import statistics

    model = Path(check.results["export"]["files"][0]["path"])
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(json.loads(run(check.bench(model)))["readings"][0]["generation_speed"])
        theirs.append(json.loads(run(check.llama_bench(model)))[0]["avg_ts"])
    ratio = statistics.median(ours) / statistics.median(theirs)
    return {
        "engine": statistics.median(ours),
        "llama_bench": statistics.median(theirs),
        "ratio": round(ratio, 4),
        "fast_enough": ratio >= LEAST_SPEED,
    }


def table(results: dict[str, Any]) -> str:
    """The results for people."""
    where = results["machine"]
    lines = [f"# {where['gpu']}, {where['at'][:10]}", ""]
    lines += [f"CUDA {where['cuda']}, " + ", ".join(f"{k} {v}" for k, v in where["versions"].items()) + ".", ""]
    lines += ["Gemma 3 in real shapes with random weights, preset `seed`, 4-bit:", ""]
    lines += ["| shape | backend | tokens/s | peak GiB | estimated | noise and rendering | losses differ by |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for shape in gemma3.SHAPES:
        found = results.get(f"train {shape}")
        for backend in ("unsloth", "hf") if found and "losses" in found else ():
            arm = found[backend]
            lines.append(
                f"| {shape} | {backend} | {arm['tokens_per_second']} | {arm['peak_memory_gib']} | "
                f"{arm['estimated_gib']} | {arm['drawing_share']:.2%} | {found['loss_difference']:.2%} |"
            )
    exported, fast = results.get("export", {}), results.get("speed", {})
    if "verified" in exported:
        lines += ["", f"Export to Q4_K_M in {exported['seconds']:.0f} s, verified: {exported['verified']}."]
    if "ratio" in fast:
        lines += ["", f"All layers on the GPU, after 512 tokens: {fast['engine']:.1f} tokens/s, llama-bench "
                      f"{fast['llama_bench']:.1f} (ratio {fast['ratio']:.3f})."]  # fmt: skip
    failed = {name: found["failed"] for name, found in results.items() if "failed" in found}
    if failed:
        lines += ["", "Failed:", "", *(f"- {name}: {' '.join(why.split())[:300]}" for name, why in failed.items())]
    return "\n".join(lines) + "\n"


def work(check: Check) -> bool:
    """Do it all, keeping what came out after each step; True where nothing failed and the figures are as wanted."""
    check.scratch.mkdir(parents=True, exist_ok=True)
    check.results["machine"] = machine()
    steps: list[tuple[str, Callable[[], dict[str, Any]]]] = [("install", lambda: install(check))]
    steps += [(f"train {shape}", lambda shape=shape: train(check, shape)) for shape in check.shapes]  # type: ignore[misc]
    steps += [("export", lambda: export(check)), ("speed", lambda: speed(check))]
    for name, step in steps:
        try:
            check.results[name] = step()
        except Exception as error:
            check.results[name] = {"failed": f"{type(error).__name__}: {error}"}
            print(f"{name} failed: {error}", file=sys.stderr)
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"gpu-{check.results['machine']['at'][:10]}"
        stem.with_suffix(".json").write_text(json.dumps(check.results, indent=2) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(table(check.results), encoding="utf-8")
        if name.startswith("train ") and name != f"train {check.shapes[0]}":
            shutil.rmtree(check.scratch / name.removeprefix("train "), ignore_errors=True)  # disks are small
    print(table(check.results))
    wanted = ("loss_parity", "same_trainable", "verified", "fast_enough", "offload")
    return all(
        "failed" not in found and all(found.get(key, True) for key in wanted) for found in check.results.values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(gemma3.SHAPES), default=["1B", "4B"])
    parser.add_argument("--scratch", type=Path, default=user_cache_path("ftllm") / "gpu-check", help="models and runs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--sdist", type=Path, help="llama-cpp-python's source distribution")
    parser.add_argument("--wheels", type=Path, help="a directory of wheels to install first")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and check its calls, and do nothing")
    given = parser.parse_args()
    if given.steps <= WARM:
        parser.error(f"--steps must be more than {WARM}")
    check = Check(given.scratch.resolve(), given.shapes, given.steps, given.length, given.sdist, given.wheels)
    if not given.dry_run:
        import torch

        if torch.cuda.is_available():
            raise SystemExit(0 if work(check) else 1)
        print("There is no CUDA GPU here. This is what would be done where there is one:\n")
    plan(check)
    found = unfit(check)
    for complaint in found:
        print(f"WRONG    {complaint}")
    print(f"\n{'the plan does not fit what is installed' if found else 'every call fits what is installed'}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
