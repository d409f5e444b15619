"""What the base's own tokenizer makes of the samples: ids, special tokens and rendered chats an export must keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.export.samples import ANSWER, CHATS, PLAIN, POSITIONS, SHARE, Messages
from ftllm.thoughts import tags_of
from ftllm.vocabulary import tokenizer_of


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


def read_tokens(directory: Path, embedded: int) -> Tokens:
    """Tokenize the samples with the base's own tokenizer; `embedded` is the number of tokens the model has weights for.

    Raises:
        UserError: transformers cannot load it.
    """
    tokenizer = tokenizer_of(directory)
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


def plain_ids(directory: Path, text: str) -> tuple[int, ...]:
    """Token ids of a text by the base's own tokenizer, nothing added."""
    return encode(tokenizer_of(directory), text)


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids, special tokens in the text parsed, nothing added."""
    return tuple(int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"])


def sequence(tokens: Tokens, bos: int | None) -> tuple[int, ...]:
    """The ids whose logits are compared: the samples' beginnings one after the other, after one BOS where one belongs.

    One sequence costs the least for what it shows: no padding, and positions far from the start.
    """
    ids = [token for sample in tokens.samples for token in sample.ids[:SHARE] if token != bos]
    head = (bos,) if bos is not None and tokens.adds_bos else ()
    return (*head, *ids)[:POSITIONS]
