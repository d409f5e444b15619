"""LoRA adapters at run time against the same adapters merged into the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_gemma as tiny
from numpy.typing import NDArray

from ftllm.errors import UserError
from ftllm.llama.adapters import Adapters, fingerprint_with
from ftllm.llama.context import Context
from ftllm.llama.generate import generate_batch
from ftllm.llama.header import read_header
from ftllm.llama.model import Model
from ftllm.llama.sampling import Sampling

PROMPT = [tiny.BOS, *range(tiny.FIRST_WORD, tiny.FIRST_WORD + 24)]


def logits(path: Path, adapters: Adapters = ()) -> NDArray[np.float32]:
    with Model.load(path, adapters=adapters) as model, Context(model, n_ctx=64, flash_attention=False) as context:
        context.decode(PROMPT, start=0, logits="all")
        return context.logits_matrix().copy()


@pytest.mark.parametrize("scales", [(1.0, 0.0), (0.5, 0.0), (0.5, -2.0)])
def test_adapters_compute_what_merging_them_does(gemma_path: Path, tmp_path: Path, scales: tuple[float, float]) -> None:
    paths = [tmp_path / f"lora{seed}.gguf" for seed in (1, 2)]
    changes = [tiny.write_lora(path, seed=seed) for seed, path in enumerate(paths, 1)]
    added = {
        name: sum(scale * change[name] for scale, change in zip(scales, changes, strict=True)) for name in changes[0]
    }
    merged = tiny.write_gemma(tmp_path / "merged.gguf", added=added)  # type: ignore[arg-type]
    plain, expected = logits(gemma_path), logits(merged)
    got = logits(gemma_path, list(zip(paths, scales, strict=True)))
    assert np.abs(expected - plain).max() > 0.5
    assert np.abs(got - expected).max() < 0.01


def test_batches_use_the_adapters_too(gemma_path: Path, tmp_path: Path) -> None:
    merged = tiny.write_gemma(tmp_path / "merged.gguf", added=tiny.write_lora(tmp_path / "lora.gguf", seed=3))
    answers = []
    for path, adapters in ((merged, []), (gemma_path, [(tmp_path / "lora.gguf", 1.0)]), (gemma_path, [])):
        with Model.load(path, adapters=adapters) as model:
            answers += generate_batch(model, [PROMPT], sampling=Sampling(temperature=0), max_tokens=8)
    assert answers[0].tokens == answers[1].tokens != answers[2].tokens


def test_what_is_no_adapter_of_this_model_is_refused(gemma_path: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.gguf"
    with pytest.raises(UserError, match="does not exist"):
        Model.load(gemma_path, adapters=[(lora, 1.0)])
    with pytest.raises(UserError, match="of kind 'model', not a LoRA adapter"):
        Model.load(gemma_path, adapters=[(gemma_path, 1.0)])
    tiny.write_lora(lora, seed=1, architecture="llama")
    with pytest.raises(UserError, match=r"an adapter of a llama model, tiny-F32\.gguf is gemma3"):
        Model.load(gemma_path, adapters=[(lora, 1.0)])
    tiny.write_lora(lora, seed=1, width=512)
    with pytest.raises(UserError, match=r"lora\.gguf does not fit tiny-F32\.gguf: .*incorrect shape"):
        Model.load(gemma_path, adapters=[(lora, 1.0)])
    tiny.write_lora(lora, seed=1)
    lora.write_bytes(lora.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut short"):
        Model.load(gemma_path, adapters=[(lora, 1.0)])
    tiny.write_lora(lora, seed=1)
    with pytest.raises(UserError, match="no number"):
        Model.load(gemma_path, adapters=[(lora, float("nan"))])


def test_a_model_with_adapters_is_another_model(gemma_path: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    for seed, path in enumerate((one, two)):
        tiny.write_lora(path, seed=seed)
    header = read_header(gemma_path)
    choices: list[Adapters] = [(), [(one, 1.0)], [(one, 0.5)], [(two, 1.0)], [(one, 1.0), (two, 0.5)]]
    assert len({fingerprint_with(header, adapters) for adapters in choices}) == len(choices)
    assert fingerprint_with(header, [(two, 0.5), (one, 1.0)]) == fingerprint_with(header, choices[-1])
