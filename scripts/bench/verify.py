"""What the quick verification adds to an export's own time.

    python scripts/bench/verify.py                                   # the model of scripts/bench/export.py
    python scripts/bench/verify.py --models /tmp/models --quant Q4_K_M --repeat 3

The same export with and without it, interleaved; medians. The verification runs beside the export, so what counts is
how much later the files are there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import gemma1b
from export import measure

LIMIT = 0.20


def seconds(base: Path, adapter: Path, quants: str, verify: str) -> tuple[float, float]:
    """Wall and processor seconds of one export."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        place = Path(directory)
        command = [sys.executable, "-m", "ftllm", "export", str(adapter), "--base", str(base), "--quant", quants]
        command += ["--verify", verify, "--quiet", "--out", str(place / "out")]
        cost = measure([command], place, lambda path: path.parent.name == "out")
        return cost.seconds, cost.processor_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "bench", help="where the generated model lies")
    parser.add_argument("--quant", default="Q4_K_M", help="types, separated by commas")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    base, adapter = gemma1b.make(arguments.models)
    found: dict[str, list[tuple[float, float]]] = {"none": [], "quick": []}
    for _ in range(arguments.repeat):
        for verify, costs in found.items():
            costs.append(seconds(base, adapter, arguments.quant, verify))
    walls, processors = {}, {}
    for verify, costs in found.items():
        walls[verify], processors[verify] = (statistics.median(column) for column in zip(*costs, strict=True))
        print(f"--verify {verify:6}{walls[verify]:8.1f} s{processors[verify]:8.1f} processor s")
    share = walls["quick"] / walls["none"] - 1
    print(f"the verification adds {share:.2f} of the export's own time (at most {LIMIT:.2f})")
    if share > LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
