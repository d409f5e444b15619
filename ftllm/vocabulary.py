"""What rendering needs to know of a tokenizer, and a Hugging Face directory as one.

A GGUF is one too (`ftllm.llama.model.Model`), so that training, evaluation and chat share `ftllm.render`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

from ftllm.errors import UserError

# Tokens that end a generation whatever the configuration says: `llama_vocab::impl::load` in llama.cpp's
# src/llama-vocab.cpp, so that a model stops at the same tokens in transformers and in its GGUF.
END_OF_GENERATION = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    }
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
REMEMBERED = 8  # texts, about as many as a row is rendered from
TOKENIZER_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")  # what to fetch of a repository to read its tokenizer


class Vocabulary(Protocol):
    """A tokenizer with its chat template."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source, or None."""

    @property
    def bos_token(self) -> str:
        """The beginning-of-sequence token as text; empty when there is none."""

    @property
    def eos_token(self) -> str:
        """The end-of-sequence token as text; empty when there is none."""

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token, or None."""

    @property
    def adds_bos(self) -> bool:
        """Whether sequences of this model begin with `bos_id`."""

    @property
    def today(self) -> date | None:
        """The date that a template which asks for it is told; None: the day it is rendered on."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written in it become themselves, nothing is added."""

    def is_eog(self, token: int) -> bool:
        """Whether generation ends at this token (end of turn, end of sequence)."""


@dataclass(frozen=True, eq=False)
class DirectoryVocabulary:
    """The tokenizer of a Hugging Face model directory; made by `from_directory`.

    Attributes:
        tokenizer: as transformers has it; None in another process, which the core of a fast one is sent to alone, so
            that it reads texts there without transformers.
        core: of a fast tokenizer; None of others.
        end_ids: what generation ends at.
        today: see `Vocabulary`.
    """

    tokenizer: Any
    core: Any
    chat_template: str
    bos_token: str
    eos_token: str
    bos_id: int | None
    adds_bos: bool
    end_ids: frozenset[int]
    today: date | None = None

    def encode(self, text: str) -> list[int]:
        return list(self._ids(text))

    @cached_property
    def _ids(self) -> Callable[[str], Sequence[int]]:
        """`encode`, which rendering asks the same of several times over; of a fast tokenizer, its core itself."""
        if self.core is None:
            return lru_cache(REMEMBERED)(partial(self.tokenizer.encode, add_special_tokens=False))
        core = self.core
        return lru_cache(REMEMBERED)(lambda text: core.encode(text, add_special_tokens=False).ids)

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return state if self.core is None else state | {"tokenizer": None}

    def is_eog(self, token: int) -> bool:
        return token in self.end_ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `text` begins and ends, in characters; tokens that share a character overlap.

        Raises:
            UserError: the tokenizer is one that does not know.
        """
        if self.core is None:
            raise UserError(
                f"{type(self.tokenizer).__name__} does not say where its tokens are in a text",
                "set noise.unit to word; tokens need a tokenizer.json",
            )
        return list(self.core.encode(text, add_special_tokens=False).offsets)


def from_directory(path: Path, today: date | None = None) -> DirectoryVocabulary:
    """The tokenizer in a model directory, rendering as on the day `today`. The network is never touched.

    Raises:
        UserError: there is no such directory, no tokenizer in it, it cannot be read, or it has no chat template.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a directory", "give a model directory in Hugging Face's layout")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{path} has no tokenizer", f"a model directory holds one of {', '.join(TOKENIZER_FILES)}")
    tokenizer = tokenizer_of(path)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError(
            f"the tokenizer in {path} has no chat template",
            "use the instruction-tuned model, or put its chat_template.jinja into the directory",
        )
    bos_id = tokenizer.bos_token_id
    return DirectoryVocabulary(
        tokenizer=tokenizer,
        core=tokenizer.backend_tokenizer if tokenizer.is_fast else None,
        chat_template=template,
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
        bos_id=bos_id,
        adds_bos=bos_id is not None and tokenizer("a")["input_ids"][:1] == [bos_id],
        end_ids=_end_ids(tokenizer.get_vocab(), tokenizer.eos_token_id, path),
        today=today,
    )


def tokenizer_of(path: Path) -> Any:
    """The tokenizer in a model directory, as transformers has it.

    Raises:
        UserError: its files are damaged, or are not what transformers takes for a tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        tokenizer("a")
    except Exception as error:  # whatever broken files make of transformers
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, AttributeError | TypeError | LookupError):  # of JSON that holds something else
            reason = "tokenizer.json or tokenizer_config.json holds something else"
        raise UserError(f"the tokenizer in {path} cannot be read: {reason}", "copy it again from the base") from error
    return tokenizer


def _end_ids(vocabulary: Mapping[str, int], eos_id: int | None, path: Path) -> frozenset[int]:
    """The ids generation ends at: llama.cpp's rule on the tokens' texts, and what the directory says."""
    texts = {text for text in END_OF_GENERATION if text in vocabulary}
    # In o200k_harmony and Solar, `<|end|>` closes a part of a turn only; in Gemma 4, `</s>` is ordinary text.
    if "<|end|>" in texts and ({"<|return|>", "<|call|>"} <= texts or {"<|calls|>", "<|flush|>"} <= texts):
        texts.discard("<|end|>")
    if "<|tool_response>" in texts or "<|plamo:eos|>" in vocabulary:
        texts.discard("</s>")
    ids = {vocabulary[text] for text in texts}
    if eos_id is not None:
        ids.add(eos_id)
    try:
        configured = json.loads((path / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        configured = None
    ids.update(token for token in (configured if isinstance(configured, list) else [configured]) if token is not None)
    return frozenset(ids)
