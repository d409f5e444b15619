"""Whether a model fits, asked of the GPUs too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ftllm.llama import gpus, machine


def test_a_build_without_a_gpu_has_memory_alone() -> None:
    assert not gpus.has_backend()
    assert gpus.gpu_memory() == 0
    assert gpus.memory_for_models() == pytest.approx(machine.available_memory(), rel=0.2)


def test_a_build_for_gpus_is_known_by_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp" / "lib").mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)  # else that one is found
    (tmp_path / "llama_cpp" / "lib" / "libggml-metal.dylib").touch()  # its memory is the machine's
    assert not gpus.has_backend()
    (tmp_path / "llama_cpp" / "lib" / "libggml-cuda.so").touch()
    assert gpus.has_backend()


def test_the_devices_are_asked_in_a_process_that_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "has_backend", lambda: True)
    assert gpus.gpu_memory() == 0  # it is asked, and has none
    for script, free in (
        ("print([3, 4])", 7),
        ("raise SystemExit(3)", 0),
        ("import os; os.abort()", 0),
        ("print({})", 0),
    ):
        monkeypatch.setattr(gpus, "ASKING", script)
        assert gpus.gpu_memory() == free
    monkeypatch.setattr(gpus, "ASKING", "print([3, 4])")
    monkeypatch.setattr(gpus, "available_memory", lambda: 10)
    assert gpus.memory_for_models() == 17
