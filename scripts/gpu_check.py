"""What only a machine with an NVIDIA GPU can show: Unsloth in 4 bits on Gemma 3 in real shapes, and llama.cpp on CUDA.

    python scripts/gpu_check.py --dry-run             # anywhere: the plan, and whether its calls fit what is installed
    python scripts/gpu_check.py --rehearse            # anywhere: all of it on the CPU, with a model of toy size
    python scripts/gpu_check.py                       # after `make install`, on a machine with a GPU and a network
    python scripts/gpu_check.py --shapes 1B 4B 12B 27B --scratch /big/disk

On a machine that is lent for minutes, has no network, and has torch, transformers and CUDA's compiler:

    python scripts/gpu_bundle.py .gpu                                                          # before, here
    python3 scripts/gpu_check.py --bundle .gpu --out OUT --seconds 560                         # there: 1B, then 4B
    python3 scripts/gpu_check.py --bundle .gpu --out OUT --seconds 200 --shapes 1B 4B 12B      # there: what is left

Weights are random, data are made up, nothing is downloaded but llama.cpp's sources where there is no bundle. It
  1. builds llama.cpp for this GPU, beside the rest;
  2. trains each shape with the method's own settings (preset `seed`: 4-bit, rank 8, paged 8-bit AdamW), with `unsloth`
     and with `hf` on the same rows, and compares speed, peak memory and losses; the learning rate is higher than the
     method's, for at its own the losses of a random model would agree whatever was wrong;
  3. exports the first shape's run to Q4_K_M and verifies it;
  4. measures that file, all layers on the GPU, with ftllm's engine and with llama-bench.
What came out is written after every step, to gpu-DATE.json and gpu-DATE.md. A step that does not fit into what is left
of `--seconds` is left out and named; one that overruns is ended, and what it had measured is kept. Called again with
the same `--scratch`, it goes on with what is missing. Exit code 1: something failed, is missing, or is not as wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

import gemma3
from gpu_plan import BACKENDS, Check, machine, plan, unfit
from gpu_report import judge, table
from train import speeds, write_rows

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftllm"
BEGAN = "FTLLM_GPU_CHECK_BEGAN"  # set where this process replaced the one that installed the bundle
SITE = "FTLLM_GPU_CHECK_SITE"
ROWS = 64
RESERVE = 15.0  # seconds kept for ending a step and writing what came out


@dataclass
class Clock:
    """What is left of the time there is.

    Attributes:
        ends: when, as `time.time()` tells it; None: whenever it is done.
    """

    ends: float | None = None

    def left(self) -> float:
        return float("inf") if self.ends is None else self.ends - time.time() - RESERVE


class TooLong(RuntimeError):
    """A command was ended, for its time was over."""


@dataclass
class Work:
    """The check under way.

    Attributes:
        check: what is to be done.
        clock: of all of it.
        out: where the results go.
        results: of each step so far, by its name.
        build: the build of llama.cpp, under way or done.
    """

    check: Check
    clock: Clock
    out: Path
    results: dict[str, Any] = field(default_factory=dict)
    build: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], limit: float = float("inf")) -> str:
        """What a command prints.

        Raises:
            TooLong: it took longer than `limit` seconds, or than there are.
            RuntimeError: it failed, with its last words.
        """
        print(f"==> {' '.join(command)}", file=sys.stderr, flush=True)
        limit = min(limit, self.clock.left())
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.check.environment(),
            start_new_session=True, text=True,
        )  # fmt: skip
        try:
            out, errors = process.communicate(timeout=None if limit == float("inf") else max(limit, 1.0))
        except subprocess.TimeoutExpired:
            raise TooLong(f"ended after {limit:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command[:8])} ended with {process.returncode}: {errors[-2000:]}")
        return out

    # The steps.

    def start_build(self) -> None:
        """Begin to build llama.cpp beside the rest, out of its way; one that was cut short goes on."""
        self.check.scratch.mkdir(parents=True, exist_ok=True)
        script = self.check.scratch / "build.sh"
        script.write_text("set -e\n" + "".join(f"{line}\n" for line in self.check.build()), encoding="utf-8")
        with (self.check.scratch / "build.log").open("ab") as log:
            self.build = subprocess.Popen(
                ["nice", "-n", "19", "bash", str(script)],
                stdout=log, stderr=log, env=self.check.environment(), start_new_session=True,
            )  # fmt: skip

    @property
    def building(self) -> bool:
        return self.build is not None and self.build.poll() is None

    def end_build(self) -> None:
        if self.build is not None and self.building:
            os.killpg(self.build.pid, signal.SIGKILL)
            self.build.wait()

    def built(self) -> dict[str, Any]:
        """Wait for llama.cpp."""
        assert self.build is not None
        began = time.time()
        try:
            code = self.build.wait(None if self.clock.ends is None else max(self.clock.left(), 1.0))
        except subprocess.TimeoutExpired:
            raise TooLong("llama.cpp is not built yet; another call goes on with it") from None
        if code:
            said = (self.check.scratch / "build.log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the build ended with {code}: {said[-2000:]}")
        offloads = "from llama_cpp import llama_supports_gpu_offload as o; print(o())"
        found = {"waited": round(time.time() - began, 1)}
        if self.check.gpu:
            found["offload"] = self.run([sys.executable, "-c", offloads]).strip() == "True"
        return found

    def train(self, shape: str, backend: str) -> dict[str, Any]:
        """One arm: speed, memory, losses, as far as it came."""
        name, began = f"{shape}-{backend}", time.time()
        write_rows(self.check.data, ROWS, self.check.length)
        gemma3.make(self.check.shapes[shape], self.check.scratch / shape)
        made = time.time() - began
        shutil.rmtree(self.check.runs / name, ignore_errors=True)
        found: dict[str, Any] = {"building": self.building}
        try:
            self.run(self.check.train(shape, backend))
        except RuntimeError as error:
            found["failed"] = str(error)
        found |= reading(self.check.runs / name)
        return found | {"seconds": round(time.time() - began - made, 1)}

    def export(self) -> dict[str, Any]:
        """The first shape's run as a verified Q4_K_M."""
        done = json.loads(self.run(self.check.export()).splitlines()[-1])
        return {"files": done["files"], "verified": done["verified"], "seconds": done["seconds"]}

    def speed(self, rounds: int = 3) -> dict[str, Any]:
        """The engine and llama-bench in turn, all layers on the GPU; medians of the rounds there was time for."""
        model = Path(self.results["export"]["files"][0]["path"])
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            try:
                ours.append(json.loads(self.run(self.check.bench(model)))["readings"][0]["generation_speed"])
                theirs.append(json.loads(self.run(self.check.llama_bench(model)))[0]["avg_ts"])
            except TooLong:
                if not theirs:
                    raise
                break
        engine, llama_bench = statistics.median(ours), statistics.median(theirs)
        return {
            "engine": engine,
            "llama_bench": llama_bench,
            "ratio": round(engine / llama_bench, 4),
            "rounds": len(theirs),
        }

    # All of them.

    def steps(self) -> Iterator[tuple[str, float, Callable[[], dict[str, Any]]]]:
        """Each step's name, the seconds that it needs at least, and what does it."""
        for number, (shape, needed) in enumerate(self.check.shapes_and_seconds()):
            for backend in BACKENDS:
                yield f"{shape} {backend}", needed, lambda shape=shape, backend=backend: self.train(shape, backend)  # type: ignore[misc]
            if number == 0:
                yield "build", 0.0, self.built
                yield "export", 30.0, self.export
                yield "speed", 30.0, self.speed

    def __call__(self) -> bool:
        """Do what is not done yet; True where nothing failed or is missing, and all is as wanted."""
        kept = self.check.scratch / "results.json"
        here = machine(self.check)
        before = json.loads(kept.read_text()) if kept.is_file() else {}
        self.results = {"machine": here} | {
            name: found for name, found in before.items()
            if before["machine"]["versions"] == here["versions"] and not {"failed", "left_out"} & set(found)
        }  # fmt: skip
        self.results["machine"] = here
        self.start_build()
        try:
            for name, needed, step in self.steps():
                if name in self.results and name != "build":
                    continue
                self.results[name] = self.tried(name, needed, step)
                self.write(kept)
                self.tidy(name)
        finally:
            self.end_build()
        self.write(kept)
        print(table(self.results))
        wrong = judge(self.results)
        for complaint in wrong:
            print(f"WRONG    {complaint}")
        return not wrong

    def tried(self, name: str, needed: float, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        shape = self.check.shapes.get(name.partition(" ")[0])
        free = shutil.disk_usage(self.check.scratch).free
        if shape and not (self.check.scratch / name.partition(" ")[0]).is_dir() and gemma3.size(shape) * 1.1 > free:
            return {"left_out": f"{gemma3.size(shape) / 1e9:.0f} GB of weights, {free / 1e9:.0f} GB of disk"}
        if self.clock.left() < needed:
            return {"left_out": f"{max(self.clock.left(), 0):.0f} s were left, and it needs {needed:.0f}"}
        if name == "speed" and not {"build", "export"} <= self.done():
            return {"left_out": "it needs the build and the export"}
        if name == "export" and not {"build", f"{next(iter(self.check.shapes))} unsloth"} <= self.done():
            return {"left_out": "it needs the build and the first training"}
        try:
            return step()
        except Exception as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            return {"failed": f"{type(error).__name__}: {error}"}

    def done(self) -> set[str]:
        """The steps that came to their end."""
        return {name for name, found in self.results.items() if not {"failed", "left_out"} & set(found)}

    def tidy(self, name: str) -> None:
        """Remove the weights that no later step reads: disks are small."""
        shape, _, backend = name.partition(" ")
        if shape in self.check.shapes and backend == BACKENDS[-1] and shape != next(iter(self.check.shapes)):
            shutil.rmtree(self.check.scratch / shape, ignore_errors=True)

    def write(self, kept: Path) -> None:
        text = json.dumps(self.results, indent=2) + "\n"
        kept.write_text(text, encoding="utf-8")
        self.out.mkdir(parents=True, exist_ok=True)
        stem = self.out / f"gpu-{self.results['machine']['at'][:10]}"
        stem.with_suffix(".json").write_text(text, encoding="utf-8")
        stem.with_suffix(".md").write_text(table(self.results), encoding="utf-8")


def reading(place: Path) -> dict[str, Any]:
    """What a run's files say of its training, finished or cut short; nothing where it made no step."""
    from ftllm.train.metrics import read

    found: dict[str, Any] = {}
    if lines := read(place / "metrics.jsonl"):
        counted = speeds([line["seconds"] for line in lines], [line["tokens"] for line in lines])
        found["losses"] = [line["loss"] for line in lines]
        found["grad_norms"] = [line["grad_norm"] for line in lines]
        if counted:
            found["tokens_per_second"] = round(statistics.median(counted), 1)
    if (place / "manifest.json").is_file():
        manifest = json.loads((place / "manifest.json").read_text())
        found |= {"precision": manifest["precision"], "trainable_parameters": manifest["trainable_parameters"]}
        results, timings = manifest["results"], manifest.get("timings")
        if timings:  # it came to its end
            found |= {
                "peak_memory_gib": round(results["peak_memory_bytes"] / 2**30, 2),
                "estimated_gib": round(results["peak_memory_estimate"] / 2**30, 2),
                "drawing_share": round(timings["rows_in_training"] / timings["train"], 5),
                "load_seconds": timings["load"],
            }
    return found


def install(bundle: Path, site: Path) -> None:
    """Install the bundle's wheels beside what is there, and begin again with them."""
    if os.environ.get(SITE) == str(site):
        return
    os.environ.setdefault(BEGAN, str(time.time()))
    wheels = [str(path) for path in sorted(bundle.glob("*.whl"))]
    if not wheels:
        raise SystemExit(f"{bundle} holds no wheels; make it with scripts/gpu_bundle.py")
    if not site.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
                   "--no-cache-dir", "--upgrade", "--target", str(site), *wheels]  # fmt: skip
        subprocess.run(command, check=True)
    os.environ[SITE] = str(site)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(gemma3.SHAPES), default=["1B", "4B"])
    parser.add_argument("--scratch", type=Path, default=CACHE / "gpu-check", help="models, runs and llama.cpp")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "bench" / "results", help="for the results")
    parser.add_argument("--seconds", type=float, help="end after so many; without, when all is done")
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--bundle", type=Path, help="what scripts/gpu_bundle.py made, for a machine without a network")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and check its calls, and do nothing")
    parser.add_argument("--rehearse", action="store_true", help="do it on the CPU, with a model of toy size")
    given = parser.parse_args()
    if given.steps < 4:
        parser.error("--steps must be at least 4")
    scratch = given.scratch.resolve() / ("rehearsal" if given.rehearse else "")
    if given.bundle:
        install(given.bundle.resolve(), scratch / "site")
    check = Check.of(given, scratch)
    if not given.dry_run:
        import torch

        if given.rehearse or torch.cuda.is_available():
            began = float(os.environ.get(BEGAN) or time.time())
            work = Work(check, Clock(given.seconds and began + given.seconds), given.out.resolve())
            raise SystemExit(0 if work() else 1)
        print("There is no CUDA GPU here. This is what would be done where there is one:\n")
    print("\n".join(plan(check)))
    found = unfit(check)
    for complaint in found:
        print(f"WRONG    {complaint}")
    print(f"\n{'the plan does not fit what is installed' if found else 'every call fits what is installed'}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
