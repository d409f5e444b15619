"""Perplexity and KL divergence: by hand, and as llama-perplexity prints them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftllm.export.heldout import conversations, plain_text
from ftllm.llama.model import Model
from ftllm.llama.perplexity import Comparison, chunk_length, compare, cut, predictions


def test_chunks_by_hand() -> None:
    chunks = cut(range(10, 21), 4, bos=1)
    assert [chunk.ids for chunk in chunks] == [(1, 11, 12, 13), (1, 15, 16, 17)]  # the last three fill none
    assert chunks[0].scored == slice(2, 3)  # the last id of a chunk predicts nothing that is in it
    assert chunks[0].following == (13,)
    assert [chunk.ids for chunk in cut(range(8), 4, bos=None, most=1)] == [(0, 1, 2, 3)]
    assert [chunk_length(tokens) for tokens in (5000, 1024, 1023, 130, 64, 63)] == [512, 512, 256, 64, 32, None]


def test_distance_by_hand() -> None:
    """Two positions: the same distribution, then (1/2, 1/2) against (3/4, 1/4)."""
    truth = np.log(np.array([[0.9, 0.1], [0.5, 0.5]], np.float32))
    guess = np.log(np.array([[0.9, 0.1], [0.75, 0.25]], np.float32))
    comparison = Comparison()
    comparison.add(truth, guess, [1, 1])
    found = comparison.result()
    second = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert found.kl_divergence == pytest.approx(second / 2, rel=1e-5)
    assert found.kl_error == pytest.approx(second / 2, rel=1e-5)  # two values, half their distance from the mean
    assert found.kl_quantiles["max"] == pytest.approx(second, rel=1e-5)
    assert found.kl_quantiles["median"] == pytest.approx(second / 2, rel=1e-5)
    assert found.same_top == 1.0
    assert found.perplexity == pytest.approx((0.1 * 0.25) ** -0.5, rel=1e-5)
    assert found.reference_perplexity == pytest.approx((0.1 * 0.5) ** -0.5, rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(2**0.5, rel=1e-5)
    assert found.positions == 2
    assert (found.decided, found.same_top_decided) == (1, 1.0)


@pytest.mark.slow
def test_the_figures_are_those_of_llama_perplexity(tmp_path: Path) -> None:
    """Divergences agree to a thousandth: its reference is rounded to 16 bits over a range of 16 nats."""
    scripts = Path(__file__).parents[2] / "scripts"
    tools = Path(subprocess.run([scripts / "build_llama_tools"], check=True, stdout=-1, text=True).stdout.strip())
    nano = scripts.parent / "models" / "nano"
    done = subprocess.run(
        [sys.executable, "-m", "ftllm", "export", nano, "--quant", "F32,Q4_K_M", "--out", tmp_path, "--verify", "none"],
        check=False,
    )
    assert done.returncode == 0
    exact, four = tmp_path / "nano-F32.gguf", tmp_path / "nano-Q4_K_M.gguf"
    text = tmp_path / "text.txt"
    text.write_text(plain_text(conversations(nano / "heldout_conversations.jsonl")[:60]), encoding="utf-8")
    with Model.load(exact) as reference, Model.load(four) as model:
        # no special tokens are in the text, which llama-perplexity would not parse
        ids = [reference.bos_id or 0, *reference.encode(text.read_text(encoding="utf-8"))]
        chunks = cut(ids, 256, bos=reference.bos_id)
        logits: dict[int, list[Any]] = {}
        for number, rows in predictions(reference, chunks):
            logits.setdefault(number, []).append(rows.copy())
        seen: list[int] = []
        ours = compare(model, chunks, lambda number: np.concatenate(logits[number]), on_chunk=seen.append)
    assert seen == list(range(1, len(chunks) + 1))
    common = ["-f", text, "-c", 256, "-b", 256, "-fa", "off", "-t", 1, "--kl-divergence-base", tmp_path / "base"]
    first = llama_perplexity(tools, "-m", exact, *common)
    said = llama_perplexity(tools, "-m", four, *common, "--kl-divergence")
    assert len(chunks) > 5
    assert ours.reference_perplexity == pytest.approx(float(re.findall(r"\]([0-9.]+),", first)[-1]), rel=1e-4)
    assert figures(said, "Mean PPL(Q)") == pytest.approx([ours.perplexity, ours.perplexity_error], rel=1e-4)
    assert figures(said, "Mean    KLD") == pytest.approx([ours.kl_divergence, ours.kl_error], rel=1e-3)
    assert figures(said, "99.0%   KLD") == pytest.approx([ours.kl_quantiles["99"]], rel=1e-3)
    assert figures(said, "Median  KLD") == pytest.approx([ours.kl_quantiles["median"]], abs=5e-6)
    assert figures(said, "Same top p") == pytest.approx([100 * ours.same_top, 100 * ours.same_top_error], rel=2e-3)


def llama_perplexity(tools: Path, *arguments: object) -> str:
    command = [tools / "llama-perplexity", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def figures(said: str, name: str) -> list[float]:
    """The numbers on the line that begins with `name`."""
    line = next(line for line in said.splitlines() if line.startswith(name))
    return [float(number) for number in re.findall(r"[0-9.]+", line.removeprefix(name))]
