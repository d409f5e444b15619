"""Native code stays quiet, and what it logs can be had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftllm.llama import native
from ftllm.llama.context import Context
from ftllm.llama.environment import quickest
from ftllm.llama.machine import available_cpus, available_memory, default_threads, physical_cores
from ftllm.llama.model import Model

SCRIPT = """
import sys
from pathlib import Path
from ftllm.llama.context import Context
from ftllm.llama.model import Model
with Model.load(Path(sys.argv[1])) as model, Context(model, n_ctx=64) as context:
    context.decode(model.encode("<bos>a"), start=0)
try:
    Model.load(Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__)
"""


def test_nothing_reaches_the_terminal(gemma_path: Path, tmp_path: Path) -> None:
    """Not on loading, not on failing, not on the way out; a process with models open ends well."""
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF junk")
    child = subprocess.run([sys.executable, "-c", SCRIPT, gemma_path, junk], capture_output=True, text=True, check=True)
    assert (child.stdout, child.stderr) == ("UserError\n", "")


def test_lines_go_to_sinks(gemma_path: Path) -> None:
    lines: list[str] = []
    with native.log_to(lines.append), Model.load(gemma_path):
        pass
    assert any("file format = GGUF V3" in line for line in lines)
    assert all(line.strip() and "\n" not in line for line in lines)
    assert lines[-1] in native.recent_log()
    count = len(lines)
    with Model.load(gemma_path):
        assert len(lines) == count


def test_what_a_sink_raises_comes_out_at_the_end(gemma_path: Path) -> None:
    def sink(line: str) -> None:
        if "GGUF V3" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), native.log_to(sink), Model.load(gemma_path):
        pass
    with Model.load(gemma_path) as model, Context(model, n_ctx=64):
        pass


def test_fragments_are_joined() -> None:
    with native.captured() as lines:
        for level, text in [(2, b"a"), (5, b"b\nc"), (1, b"debug\n"), (5, b"more debug\n"), (3, b"d\n\n"), (4, b"e\n")]:
            native._on_log(level, text, None)
    assert lines == ["ab", "cd", "e"]


def test_the_machine() -> None:
    assert 1 <= physical_cores() <= available_cpus()
    assert default_threads(1_000_000) == 1
    assert default_threads(1_000_000_000) == physical_cores()
    assert available_memory() > 2**20


def test_what_the_person_has_set_stays() -> None:
    theirs = {"GOMP_SPINCOUNT": "7", "GLIBC_TUNABLES": "glibc.malloc.check=3", "HOME": "/home/me"}
    assert quickest(theirs) == theirs | {"GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1"}
    assert quickest({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"
