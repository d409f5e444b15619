"""`ftllm export` against peft merge + convert_hf_to_gguf + llama-quantize: wall time, memory, scratch disk.

    python scripts/bench/export.py        # one type, then three in one pass (the peer shares its 16-bit file)
    python scripts/bench/export.py --quant Q4_K_M --repeat 3
    python scripts/bench/export.py --pairs 8 --verification   # only what verifying (quick) adds to an export

The model has Gemma 3 1B's shape (scripts/bench/gemma1b.py), the peers' tools are those of scripts/build_llama_tools.
Neither side verifies; what that adds is measured by itself, against the same export without. Memory is the peak of
anonymous memory summed over all processes of a side, ten times a second; scratch is what lies on the disk beyond the
files asked for. Rounds are interleaved; figures are medians.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import gemma1b

from ftllm.export import fetch

MERGE = """
import shutil, sys
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = map(Path, sys.argv[1:])
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
for file in base.iterdir():
    if file.name.startswith(("tokenizer", "special", "chat_template")):
        shutil.copy(file, out)
"""
LIMITS = {"time": 0.40, "memory": 0.25, "verification": 0.20}


@dataclass(frozen=True)
class Cost:
    """What a series of commands took: seconds, those of all processors, the last command's alone, and bytes."""

    seconds: float
    processor_seconds: float
    last_seconds: float
    memory: int
    scratch: int


def measure(commands: list[list[str]], place: Path, outputs: Callable[[Path], bool]) -> Cost:
    """Run commands one after another in `place`; files for which `outputs` is true are no scratch."""
    memory = scratch = 0
    before = processor_time()
    seconds: list[float] = []
    for command in commands:
        started = time.monotonic()
        environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log, env=environment)
            ended = threading.Event()
            threading.Thread(target=lambda p, e: (p.wait(), e.set()), args=(process, ended)).start()
            while not ended.wait(0.1):
                memory = max(memory, sum(map(anonymous, family(process.pid))))
                scratch = max(scratch, disk(place, outputs))
            seconds.append(time.monotonic() - started)
            if process.returncode:
                log.seek(0)
                sys.exit(f"{command} failed:\n{log.read().decode()[-2000:]}")
    return Cost(sum(seconds), processor_time() - before, seconds[-1], memory, scratch)


def processor_time() -> float:
    """Seconds that processes which have ended by now computed: what a busy machine cannot stretch."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                found += family(int(child))
    except OSError:
        pass
    return found


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory a process has."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)
    except OSError:
        return 0


def disk(place: Path, outputs: Callable[[Path], bool]) -> int:
    """Bytes that files in `place` take on the disk, outputs left out."""
    total = 0
    for path in place.rglob("*"):
        try:
            total += 0 if path.is_dir() or outputs(path) else path.stat().st_blocks * 512
        except OSError:
            continue
    return total


def ours(base: Path, adapter: Path, quants: list[str], verify: str = "none") -> Cost:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        place = Path(directory)
        command = [sys.executable, "-m", "ftllm", "export", str(adapter), "--base", str(base)]
        command += ["--quant", ",".join(quants), "--verify", verify, "--quiet", "--out", str(place / "out")]
        return measure([command], place, lambda path: path.parent.name == "out")


def theirs(base: Path, adapter: Path, quants: list[str], tools: Path) -> Cost:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        place = Path(directory)
        merged, float_file = str(place / "merged"), str(place / "float.gguf")
        converter = str(fetch.ensure().root / "convert_hf_to_gguf.py")
        commands = [
            [sys.executable, "-c", MERGE, str(base), str(adapter), merged],
            [sys.executable, converter, merged, "--outtype", "auto", "--outfile", float_file],
        ]
        commands += [[str(tools / "llama-quantize"), float_file, f"out-{quant}.gguf", quant] for quant in quants]
        return measure(commands, place, lambda path: path.name.startswith("out-"))


def median(costs: list[Cost]) -> Cost:
    seconds, processor, last, memory, scratch = map(statistics.median, zip(*map(astuple, costs), strict=True))
    return Cost(seconds, processor, last, int(memory), int(scratch))


def compare(base: Path, adapter: Path, quants: list[str], tools: Path, repeat: int) -> bool:
    """Print a table for one set of types; whether the limits are kept."""
    mine, peers = [], []
    for _ in range(repeat):
        mine.append(ours(base, adapter, quants))
        peers.append(theirs(base, adapter, quants, tools))
    us, them = median(mine), median(peers)
    print(f"\n{', '.join(quants)}: median of {repeat}")
    print(f"{'':34}{'seconds':>9}{'CPU s':>8}{'memory MB':>11}{'scratch MB':>12}")
    for name, cost in (("ftllm export", us), ("peft + convert + llama-quantize", them)):
        times = f"{cost.seconds:9.1f}{cost.processor_seconds:8.1f}"
        print(f"{name:34}{times}{cost.memory / 1e6:11.0f}{cost.scratch / 1e6:12.1f}")
    time_ratio, memory_ratio = us.seconds / them.seconds, us.memory / them.memory
    processor_ratio = us.processor_seconds / them.processor_seconds
    print(f"{'ratio (at most 0.40, 0.25)':34}{time_ratio:9.2f}{processor_ratio:8.2f}{memory_ratio:11.2f}")
    if len(quants) == 1:
        print(f"llama-quantize alone takes {them.last_seconds:.1f} s: {us.seconds / them.last_seconds:.2f} times that")
    return time_ratio <= LIMITS["time"] and memory_ratio <= LIMITS["memory"]


def compare_verification(base: Path, adapter: Path, pairs: int) -> bool:
    """Print what verifying one type quickly adds to its export; whether the limit is kept."""
    ways = ("none", "quick")
    times: dict[str, list[Cost]] = {way: [] for way in ways}
    for turn in range(pairs):
        for way in ways if turn % 2 else reversed(ways):
            times[way].append(ours(base, adapter, ["Q4_K_M"], way))
    added = [quick.seconds / none.seconds - 1 for none, quick in zip(times["none"], times["quick"], strict=True)]
    none, quick = median(times["none"]), median(times["quick"])
    print(f"\nQ4_K_M, {pairs} times with and without verification: medians")
    print(f"{none.seconds:.1f} s, verified {quick.seconds:.1f} s (CPU {none.processor_seconds:.1f}, verified ", end="")
    print(f"{quick.processor_seconds:.1f})")
    share = statistics.median(added)
    print(f"verifying adds {share:.2f} ({min(added):.2f} to {max(added):.2f}; at most {LIMITS['verification']:.2f})")
    return share <= LIMITS["verification"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "bench", help="where the generated model lies")
    parser.add_argument("--quant", action="append", help="types of one comparison, by commas; may repeat")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5, help="exports with and without verification")
    parser.add_argument("--verification", action="store_true", help="measure nothing else")
    arguments = parser.parse_args()
    base, adapter = gemma1b.make(arguments.models)
    fetch.ensure()  # the exports are told to stay offline
    for shard in base.glob("*.safetensors"):  # both sides read it from memory
        with shard.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
            shutil.copyfileobj(file, nowhere, 1 << 24)
    kept = [compare_verification(base, adapter, arguments.pairs)]
    if arguments.verification:
        sys.exit(0 if all(kept) else 1)
    built = subprocess.run([ROOT / "scripts" / "build_llama_tools"], check=True, stdout=subprocess.PIPE, text=True)
    tools = Path(built.stdout.strip())
    sets = [value.split(",") for value in arguments.quant or ["Q4_K_M", "Q4_K_M,Q6_K,Q8_0"]]
    kept += [compare(base, adapter, quants, tools, arguments.repeat) for quants in sets]
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
