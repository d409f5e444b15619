"""What must hold of a GGUF before it gets its name: each check returns the faults it found, as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftllm.errors import UserError
from ftllm.export import limits
from ftllm.export.blocks import Floats
from ftllm.export.tokens import Sample, Tokens
from ftllm.files import sha256_file, xxh3_file
from ftllm.llama.header import Header, LongArray
from ftllm.llama.model import Model
from ftllm.templates import render_template

Ints = npt.NDArray[np.int32]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # llama_token_type in llama.h

SPECIAL = 256  # special tokens that are tokenized; Gemma has 6,242, nearly all <unused...>


def check_header(header: Header, *, size: int, tensors: int) -> list[str]:
    """The file on disk has the length and the tensors that were written."""
    faults = []
    if header.file_size != size:
        faults.append(f"it is {header.file_size:,} bytes long, {size:,} were written")
    if len(header.tensors) != tensors:
        faults.append(f"it holds {len(header.tensors)} of {tensors} tensors")
    return faults


def check_bytes(path: Path, part: Mapping[str, Any]) -> list[str]:
    """The file on disk holds the bytes that were written: by their `xxh3` where the writer noted it, or `sha256`.

    Damage is found by either; only what someone made to deceive needs the other, at up to fifty times the work.
    """
    known = part.get("xxh3")
    same = xxh3_file(path) == known if known is not None else sha256_file(path) == part["sha256"]
    return [] if same else ["its bytes on disk are not those that were written"]


def check_tokens(model: Model, header: Header, tokens: Tokens) -> list[str]:
    """Token ids, special tokens and their types, one BOS, an end of turn, thought tags."""
    faults = []
    for sample in tokens.samples:
        if (found := tuple(model.encode(sample.text))) != sample.ids:
            faults.append(_difference(sample, found, model))
            break
    faults += _special_tokens(model, header, tokens)
    for sample in tokens.samples:
        leading = _leading(sample.ids, model.bos_id)
        if leading > 1:
            faults.append(f"the chat template begins with {leading} BOS tokens")
            break
    if tokens.bos and model.adds_bos != tokens.adds_bos:
        adds = "adds a BOS where" if model.adds_bos else "adds no BOS where"
        faults.append(f"it {adds} the original tokenizer does {'not' if model.adds_bos else 'so'}")
    faults += _end_of_turn(model, tokens)
    for tag in tokens.tags:
        if tag not in model.decode_text(model.encode(f"a {tag} b")):
            faults.append(f"the thought tag {tag} vanishes from what the model writes")
    return faults


def check_template(model: Model, tokens: Tokens) -> list[str]:
    """The GGUF's template, in a sandbox of our own, gives transformers' text."""
    chats = [sample for sample in tokens.samples if sample.chat is not None]
    if chats and not model.chat_template:
        return ["it has no chat template, the original has one"]
    for sample in chats:
        try:
            text = render_template(
                model.chat_template or "",
                sample.chat or [],
                bos_token=model.bos_token,
                eos_token=model.eos_token,
                add_generation_prompt=sample.prompt,
            )
        except UserError as error:
            return [error.message]
        leading = _leading(tuple(model.encode(text)), model.bos_id)
        if leading > 1:
            return [f"its chat template begins with {leading} BOS tokens; the first would be read as text"]
        if text != sample.text:
            return [f"its chat template renders {text[:80]!r}..., transformers {sample.text[:80]!r}..."]
    return []


def finite(logits: Floats) -> bool:
    """Whether every logit is a number: a sum is one only if all of them are (and they are far from float32's end)."""
    return bool(np.isfinite(logits.sum(dtype=np.float64)))


def check_changes(shares: Mapping[str, tuple[float, float]]) -> list[str]:
    """Every layer holds the whole of its adapter: `shares` gives, by layer, the share found and its standard error."""
    faults = []
    for layer, (share, error) in shares.items():
        if abs(share - 1.0) > limits.SHARE + limits.SHARE_ERRORS * error:
            faults.append(f"{layer} holds {share:.2f} times what its adapter adds (should be 1.00 +- {error:.2f})")
    return faults[:3]


def _difference(sample: Sample, found: tuple[int, ...], model: Model) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(sample.ids, found, strict=False)) if a != b), min(len(sample.ids), len(found))
    )
    theirs, ours = sample.ids[at : at + 8], found[at : at + 8]
    text = model.decode_text(ours, special=True)
    return f"it splits text otherwise than the original tokenizer: {list(ours)} ({text!r}) for {list(theirs)}"


def _special_tokens(model: Model, header: Header, tokens: Tokens) -> list[str]:
    kinds = token_types(header)
    # Some are only invented by the tokenizer's class (Gemma's <mask>): no weights, never used.
    known = {index: text for index, text in tokens.special.items() if index < tokens.embedded}
    for index, text in known.items():
        if index >= model.n_vocab:
            return [f"the special token {text} ({index}) is not in its vocabulary"]
        if text not in tokens.tags and kinds is not None and kinds[index] not in (CONTROL, UNKNOWN):
            return [f"the special token {text} is an ordinary token (type {kinds[index]}, should be {CONTROL})"]
    used = {index for sample in tokens.samples for index in sample.ids}
    chosen = sorted(known, key=lambda index: (index not in used, index))[:SPECIAL]
    for index in chosen:
        if tuple(model.encode(known[index])) != (index,):
            return [f"the special token {known[index]} is not one token: it becomes {model.encode(known[index])}"]
    return []


def token_types(header: Header) -> Ints | None:
    """`tokenizer.ggml.token_type`, read from the file; None when absent."""
    value = header.metadata.get("tokenizer.ggml.token_type")
    if isinstance(value, LongArray):
        kinds: Ints = np.fromfile(header.path, dtype="<i4", count=value.length, offset=value.offset)
        return kinds
    return None if value is None else np.array(value, dtype=np.int32)


def _end_of_turn(model: Model, tokens: Tokens) -> list[str]:
    if tokens.tail is None:
        return []
    text, ids = tokens.tail
    if any(model.is_eog(token) for token in ids):
        return []
    control = [tokens.special[token] for token in ids if token in tokens.special]
    if control:
        return [f"{control[0]}, which the template writes after an answer, does not end its generation: it never stops"]
    return [f"nothing the template writes after an answer ({text!r}) ends its generation: it never stops"]


def _leading(ids: tuple[int, ...], bos: int | None) -> int:
    count = 0
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
    return count
