"""Choosing the next token with llama.cpp's own samplers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from ftllm.errors import WorkError
from ftllm.llama import native
from ftllm.llama.context import Context
from ftllm.llama.model import Model

PENALTY_WINDOW = 64  # tokens looked back, llama.cpp's default


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest that together have this probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest; 0 drops none.
        repeat_penalty: divide the logits of the last 64 tokens by this; 1 leaves them.
        seed: None draws one.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature <= 0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """The settings a GGUF recommends in `general.sampling.*`, the defaults where it says nothing usable."""

        def number(key: str, default: float) -> float:
            try:
                return float(metadata[f"general.sampling.{key}"])
            except (KeyError, ValueError):
                return default

        return cls(
            temperature=number("temp", cls.temperature),
            top_k=int(number("top_k", cls.top_k)),
            top_p=number("top_p", cls.top_p),
            min_p=number("min_p", cls.min_p),
            repeat_penalty=number("penalty_repeat", cls.repeat_penalty),
        )


class Sampler:
    """A chain of llama.cpp's samplers in its own default order: penalties, top-k, top-p, min-p, temperature, draw."""

    def __init__(self, model: Model, sampling: Sampling) -> None:
        """Make the chain; with `sampling.seed` None a seed is drawn, see `seed`."""
        api = native.api()
        self._model = model
        self.seed = random.SystemRandom().getrandbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        params = api.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = api.llama_sampler_chain_init(params)
        stages = []
        if sampling.repeat_penalty != 1.0:
            penalty = sampling.repeat_penalty
            stages.append(api.llama_sampler_init_penalties(model.n_vocab, PENALTY_WINDOW, penalty, 0.0, 0.0))
        if sampling.greedy:
            stages.append(api.llama_sampler_init_greedy())
        else:
            if sampling.top_k > 0:
                stages.append(api.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                stages.append(api.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                stages.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
            stages.append(api.llama_sampler_init_temp(sampling.temperature))
            stages.append(api.llama_sampler_init_dist(self.seed))
        for stage in stages:
            api.llama_sampler_chain_add(chain, stage)
        self._api = api
        self._chain: int | None = chain

    def sample(self, context: Context, index: int = -1) -> int:
        """Choose a token from the logits of entry `index` of the last batch, and remember it for penalties.

        Raises:
            IndexError: that entry has no logits.
            WorkError: the logits are not numbers.
        """
        if self._chain is None:
            raise RuntimeError("the sampler is closed")
        if np.isnan(context.logits(index).max()):  # llama.cpp would abort the process
            raise WorkError(f"{self._model.path.name} computed logits that are not numbers", "the file is damaged")
        return int(self._api.llama_sampler_sample(self._chain, context.handle, index))

    def accept(self, token: int) -> None:
        """Remember a token that was not sampled here (a forced one) for penalties."""
        if self._chain is not None:
            self._api.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the chain. Closing twice is fine."""
        if self._chain is not None:
            self._api.llama_sampler_free(self._chain)
            self._chain = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
