"""The truth an export is measured against: transformers in float32 on the base, the adapter beside it, unmerged.

Nothing here shares code with the merge: module names, the scale and the low-rank product are worked out again, so
that a mistake in one of them shows as a difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftllm.errors import UserError
from ftllm.export.blocks import Floats
from ftllm.export.samples import ANSWER, CHATS, LONGEST, PLAIN, Messages
from ftllm.llama.machine import default_threads
from ftllm.thoughts import tags_of


@dataclass(frozen=True)
class Sample:
    """One text, its ids by the HF tokenizer (nothing added), and the chat it was rendered from, if any."""

    text: str
    ids: tuple[int, ...]
    chat: Messages | None = None
    prompt: bool = False  # rendered with the generation prompt


@dataclass(frozen=True)
class Tokens:
    """What the HF tokenizer says."""

    samples: tuple[Sample, ...]
    special: dict[int, str]
    embedded: int  # rows of the embedding matrix
    bos: str
    eos: str
    adds_bos: bool
    tail: tuple[str, tuple[int, ...]] | None  # what the template writes after an answer: text and ids
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """What the adapter adds to one linear layer: base weight and `scale * B @ A`, both `[out, in]`."""

    module: str
    weight: Floats
    delta: Floats


def read_tokens(directory: Path, embedded: int) -> Tokens:
    """Tokenize the samples with the base's own tokenizer; `embedded` is the number of tokens the model has weights for.

    Raises:
        UserError: transformers cannot load it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the tokenizer in {directory} cannot be loaded: {reason}", "copy it from the original"
        ) from None
    samples = [Sample(text, encode(tokenizer, text)) for text in PLAIN]
    tail = None
    if tokenizer.chat_template:
        for chat in CHATS:
            prompt = chat[-1]["role"] == "user"
            try:
                text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            except Exception as error:  # a template may raise anything
                raise UserError(
                    f"the chat template in {directory} fails: {error}", "it is broken; see its file"
                ) from None
            samples.append(Sample(text, encode(tokenizer, text), chat, prompt))
        answered = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ANSWER}]
        text = tokenizer.apply_chat_template(answered, tokenize=False)
        after = text.rpartition(ANSWER)[2] if ANSWER in text else ""
        tail = (after, encode(tokenizer, after))
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    bos = tokenizer.bos_token_id
    tags = tags_of(tokenizer.chat_template)
    return Tokens(
        tuple(samples),
        {int(index): str(token.content) for index, token in added.items() if token.special},
        embedded,
        tokenizer.bos_token or "",
        tokenizer.eos_token or "",
        bos is not None and tokenizer("x")["input_ids"][:1] == [bos],
        tail,
        (tags.open, tags.close),
    )


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids, special tokens in the text parsed, nothing added."""
    return tuple(int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"])


def sequences(tokens: Tokens, bos: int | None) -> list[tuple[int, ...]]:
    """The id sequences whose logits are compared: each sample, after one BOS where the model wants one."""
    wanted = []
    for sample in tokens.samples:
        ids = sample.ids
        if bos is not None and tokens.adds_bos and ids[:1] != (bos,):
            ids = (bos, *ids)
        wanted.append(ids[:LONGEST])
    return [ids for ids in wanted if ids]


class Reference:
    """The base in float32 with the adapter's low-rank products added to its layers' outputs."""

    def __init__(self, directory: Path, adapter: Path | None) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
        )
        self.model.eval()
        torch.set_num_threads(default_threads(self.model.num_parameters()))
        self.n_vocab = int(self.model.get_input_embeddings().weight.shape[0])
        self.bos: int | None = getattr(self.model.config.get_text_config(), "bos_token_id", None)
        self._factors = dict(_factors(adapter)) if adapter is not None else {}
        for module, (a, b, scale) in self._factors.items():
            self.model.get_submodule(module).register_forward_hook(_adding(a, b, scale))

    def logits(self, ids: tuple[int, ...]) -> Floats:
        """Logits `[len(ids), n_vocab]`."""
        with torch.inference_mode():
            values: Floats = self.model(input_ids=torch.tensor([ids])).logits[0].float().numpy()
        return values

    def change(self, module: str) -> Change:
        """What the adapter does to one layer."""
        a, b, scale = self._factors[module]
        layer = self.model.get_submodule(module)
        weight = layer.weight.detach()
        delta = (b @ a) * scale
        if weight.shape != delta.shape:
            weight = weight.T
        return Change(module, weight.numpy(), delta.numpy())

    @property
    def changed(self) -> tuple[str, ...]:
        """The layers the adapter changes."""
        return tuple(self._factors)


def _adding(a: torch.Tensor, b: torch.Tensor, scale: float) -> Any:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (inputs[0] @ a.T @ b.T) * scale

    return hook


def _factors(adapter: Path) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor, float]]]:
    """Each changed layer's A, B and factor, as PEFT's own layer would use them."""
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(adapter / "adapter_model.safetensors")
    for name in sorted(weights):
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a = weights[name].float()
        b = weights[name.replace(".lora_A.", ".lora_B.")].float()
        alpha = config["lora_alpha"]
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.search(rf"(^|\.)(?:{pattern})$", module):
                alpha = value
                break
        rank = a.shape[0]
        yield module, (a, b, alpha * rank**-0.5 if config.get("use_rslora") else alpha / rank)


def relative_change(change: Change, merged: Floats) -> tuple[float, float]:
    """How much of `change.delta` is in `merged - change.weight`, by least squares, and that figure's standard error.

    A right merge gives 1; quantization adds noise but no bias. A weight whose rows upstream reorders has an error
    too large to mean anything.
    """
    delta = change.delta.astype(np.float64).ravel()
    rest = merged.astype(np.float64).ravel() - change.weight.astype(np.float64).ravel()
    power = float(delta @ delta)
    if power == 0.0:
        return 1.0, float("inf")
    share = float(rest @ delta) / power
    rest -= share * delta
    return share, float(np.sqrt(rest @ rest / rest.size / power))
