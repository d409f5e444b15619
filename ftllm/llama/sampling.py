"""Choosing the next token."""

from __future__ import annotations

import ctypes
import math
import random
import struct
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ftllm.errors import WorkError
from ftllm.llama import native
from ftllm.llama.closing import Closing
from ftllm.llama.context import Context
from ftllm.llama.model import Model
from ftllm.llama.preselect import Columns, Floats, survivors

PENALTY_WINDOW = 64  # tokens looked back, llama.cpp's default
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
PACK = struct.Struct("@if").pack_into  # the first two of them; llama.cpp computes the third


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest that together have this probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest; 0 drops none.
        repeat_penalty: divide the logits of the last 64 tokens by this; 1 leaves them.
        frequency_penalty: take this from a token's logit for each time it is among them; 0 leaves it.
        presence_penalty: take this from it once where it is among them; 0 leaves it.
        seed: None draws one.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature <= 0

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens are made less likely."""
        return (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """The settings a GGUF recommends in `general.sampling.*`, the defaults where it says nothing usable."""

        def number(key: str, default: float) -> float:
            try:
                value = float(metadata[f"general.sampling.{key}"])
            except (KeyError, ValueError):
                return default
            return value if math.isfinite(value) else default

        return cls(
            temperature=number("temp", cls.temperature),
            top_k=int(number("top_k", cls.top_k)),
            top_p=number("top_p", cls.top_p),
            min_p=number("min_p", cls.min_p),
            repeat_penalty=number("penalty_repeat", cls.repeat_penalty),
        )


class _Candidates:
    """A `llama_token_data_array` in room that is used again: making one anew takes as long as drawing from it.

    Attributes:
        table: the tokens of the last one, and whatever lies behind them.
    """

    def __init__(self, api: Any) -> None:
        self._api, self.table = api, np.empty(0, dtype=TOKEN_DATA)

    def fill(self, ids: Sequence[int] | NDArray[np.int64], logits: Sequence[float] | Floats, *, ordered: bool) -> Any:
        """The array of these tokens, the largest logit first where they are `ordered`."""
        count = len(ids)
        if count > len(self.table):
            self.table = np.zeros(max(2 * count, 256), dtype=TOKEN_DATA)
            self._bytes = self.table.view(np.uint8).data
            self._array = self._api.llama_token_data_array()
            self._array.data = self.table.ctypes.data_as(self._api.llama_token_data_p)
        if isinstance(ids, list):
            for place, (token, logit) in enumerate(zip(ids, logits, strict=True)):
                PACK(self._bytes, place * TOKEN_DATA.itemsize, token, logit)
        else:
            self.table["id"][:count], self.table["logit"][:count] = ids, logits
        self._array.size, self._array.selected, self._array.sorted = count, -1, ordered
        return self._array


class Sampler(Closing):
    """Draws as llama.cpp's chain does in its default order: penalties, top-k, top-p, min-p, temperature, draw.

    The filters are `ftllm.llama.preselect`'s; temperature and the draw are llama.cpp's own, on what they leave.
    """

    def __init__(self, model: Model, sampling: Sampling) -> None:
        """Make the chain; with `sampling.seed` None a seed is drawn, see `seed`."""
        api = native.api()
        self.seed = random.SystemRandom().getrandbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        self._model = model
        self._recent: deque[int] = deque(maxlen=PENALTY_WINDOW)
        self._api = api
        self._chain: int | None = None
        self._columns: Columns | None = None
        self._candidates = _Candidates(api)
        self.change(sampling)

    def change(self, sampling: Sampling) -> None:
        """Go on in another way; recent tokens stay remembered, and `sampling.seed` is left aside."""
        api = self._api
        self.close()
        self.sampling = sampling
        params = api.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = api.llama_sampler_chain_init(params)
        if not sampling.greedy:
            api.llama_sampler_chain_add(self._chain, api.llama_sampler_init_temp(sampling.temperature))
            api.llama_sampler_chain_add(self._chain, api.llama_sampler_init_dist(self.seed))

    def sample(self, context: Context, index: int = -1) -> int:
        """Choose a token from the logits of entry `index` of the last batch, and remember it for penalties.

        Raises:
            IndexError: that entry has no logits.
            WorkError: the logits are not numbers.
        """
        if self._chain is None:
            raise RuntimeError("the sampler is closed")
        token = self.choose(context.logits(index))
        self.accept(token)
        return token

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Choose a token from logits [n_vocab], remembering nothing but the state of the draw."""
        sampling = self.sampling
        if sampling.penalizes:
            logits = self._penalized(logits)
        if sampling.greedy:
            best = int(logits.argmax())  # a NaN counts as largest
            self._check(logits[best])
            return best
        columns = self._columns
        if columns is not None and columns.logits is logits:  # llama.cpp leaves them in the same place each time
            columns.read()
        else:
            columns = self._columns = Columns(logits)
        self._check(columns.largest)
        ids, values = survivors(columns, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
        array = self._candidates.fill(ids, values, ordered=sampling.top_k > 0 or sampling.top_p < 1)
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(self._candidates.table["id"][array.selected])

    def _check(self, largest: float | np.float32) -> None:
        if math.isnan(largest):
            raise WorkError(f"{self._model.path.name} computed logits that are not numbers", "the file is damaged")

    def _penalized(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy with recent tokens made less likely, as `llama_sampler_penalties_apply`."""
        counts = Counter(self._recent)
        tokens, times = list(counts), np.array(list(counts.values()), dtype=np.float32)
        repeat, frequency, presence = map(
            np.float32, (self.sampling.repeat_penalty, self.sampling.frequency_penalty, self.sampling.presence_penalty)
        )
        changed = logits.copy()
        values = changed[tokens]
        changed[tokens] = np.where(values <= 0, values * repeat, values / repeat) - (times * frequency + presence)
        return changed

    def accept(self, token: int) -> None:
        """Remember a token for penalties; for those not sampled here (forced ones)."""
        self._recent.append(token)

    def close(self) -> None:
        """Free the chain. Closing twice is fine."""
        if self._chain is not None:
            self._api.llama_sampler_free(self._chain)
            self._chain = None
