"""The probe for builds that crash on repacked weights: real, remembered, and believing a crash."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_gemma as tiny

from ftllm.errors import WorkError
from ftllm.llama import probe
from ftllm.llama.context import Context
from ftllm.llama.model import Model
from ftllm.llama.quantize import quantize

CRASH = "import os, signal; {}; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and nothing remembered in this process."""
    place = tmp_path / "cache" / "probe.json"
    monkeypatch.setattr(probe, "cache_file", lambda: place)
    probe.extra_buffers_work.cache_clear()
    yield place
    probe.extra_buffers_work.cache_clear()


def test_the_real_probe_answers_and_is_remembered(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = probe.extra_buffers_work()
    assert json.loads(fresh.read_text()) == {probe.fingerprint(): answer}
    probe.extra_buffers_work.cache_clear()
    monkeypatch.setattr(probe, "ask_child", lambda: pytest.fail("asked twice"))
    assert probe.extra_buffers_work() is answer


def test_another_build_is_asked_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.parent.mkdir()
    fresh.write_text(json.dumps({"another build": True}))
    monkeypatch.setattr(probe, "ask_child", lambda: False)
    assert probe.extra_buffers_work() is False
    assert json.loads(fresh.read_text()) == {probe.fingerprint(): False}


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"x": 1}'])
def test_a_damaged_cache_is_asked_again(fresh: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    fresh.parent.mkdir()
    fresh.write_text(content)
    monkeypatch.setattr(probe, "ask_child", lambda: True)
    assert probe.extra_buffers_work() is True


@pytest.mark.usefixtures("fresh")
def test_no_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "cache_file", lambda: Path("/proc/nowhere/probe.json"))
    monkeypatch.setattr(probe, "ask_child", lambda: True)
    assert probe.extra_buffers_work() is True


def test_a_crash_on_repacked_weights_turns_them_off() -> None:
    child = CRASH.format(f"print({probe.PLAIN!r}, flush=True)")
    assert probe.ask_child((sys.executable, "-c", child)) is False


def test_a_hang_turns_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIMEOUT", 3)
    child = f"print({probe.PLAIN!r}, flush=True); import time; time.sleep(60)"
    assert probe.ask_child((sys.executable, "-c", child)) is False


def test_a_crash_on_plain_weights_is_an_error() -> None:
    with pytest.raises(WorkError, match="does not run quantized models"):
        probe.ask_child((sys.executable, "-c", CRASH.format("pass")))


def test_the_probe_covers_what_llama_cpp_repacks(tmp_path: Path) -> None:
    """Its model computes the same with and without, and really is repacked."""
    path = tmp_path / "probe.gguf"
    probe.write_model(path)
    plain, repacked = probe.run_model(path, repack=False), probe.run_model(path, repack=True)
    assert np.isfinite(plain).all()
    assert plain.std() > 0.1
    assert np.abs(plain - repacked).max() < probe.LARGEST_ERROR * plain.std()


def test_models_work_without_repacking(gemma_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "q4.gguf"
    quantize(gemma_path, path, "Q4_K_M", threads=1)
    found = []
    for works in (False, True):
        monkeypatch.setattr(probe, "extra_buffers_work", lambda works=works: works)
        with Model.load(path) as model, Context(model, n_ctx=64) as context:
            context.decode([tiny.BOS, 300, 301, 302], start=0)
            found.append(context.logits().copy())
    assert np.abs(found[0] - found[1]).max() < 0.2 * found[0].std()


def test_the_probe_is_quick() -> None:
    """A few hundred milliseconds of work, asked once: measured in the child's processor time, for machines are busy."""
    before = os.times()
    probe.ask_child()
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3
