"""What must hold of a GGUF before it gets its name: each check returns the faults it found, as sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ftllm.errors import UserError
from ftllm.export.blocks import Floats
from ftllm.export.reference import Sample, Tokens
from ftllm.llama.header import Header, LongArray
from ftllm.llama.model import Model
from ftllm.templates import render_template

Ints = npt.NDArray[np.int32]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # llama_token_type in llama.h

# Largest mean Kullback-Leibler divergence (nats a token, transformers float32 against llama.cpp) and smallest share of
# positions with the same likeliest token, by the bits a type has. Several times worse than the 5 M-parameter nano model
# shows on the same samples (Q4_K_M: 0.06 and 80 %), and larger models lose less. Float types differ by rounding only:
# llama.cpp keeps its KV cache in 16 bits. A norm without its +1 or unpermuted heads are far beyond; what an adapter
# adds is checked for itself, for low-bit noise may drown it here.
LIMITS = {
    "F32": (0.001, 0.97), "F16": (0.002, 0.96), "BF16": (0.02, 0.93), "Q8_0": (0.03, 0.88), "Q6_K": (0.06, 0.82),
    "Q5": (0.15, 0.72), "Q4": (0.5, 0.55), "Q3": (1.2, 0.40), "Q2": (3.0, 0.25),
}  # fmt: skip


@dataclass(frozen=True)
class Distance:
    """How far a GGUF's predictions are from the reference, over all positions of the samples."""

    kl_divergence: float
    same_top: float
    perplexity_ratio: float
    positions: int


def limits(quant: str) -> tuple[float, float]:
    """The bounds for a file type: its own, or those of its bits (`IQ4_XS` -> `Q4`)."""
    if quant in LIMITS:
        return LIMITS[quant]
    bits = next((character for character in quant if character.isdigit()), "2")
    return LIMITS.get(f"Q{bits}", LIMITS["Q2"])


def check_file(path: Path, header: Header, *, size: int, sha256: str, tensors: int) -> list[str]:
    """The file on disk is what was written: its length, its hash, its tensors."""
    faults = []
    if header.file_size != size:
        faults.append(f"it is {header.file_size:,} bytes long, {size:,} were written")
    if len(header.tensors) != tensors:
        faults.append(f"it holds {len(header.tensors)} of {tensors} tensors")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            faults.append("its bytes on disk are not those that were written")
    return faults


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
        if text != sample.text:
            return [f"its chat template renders {text[:80]!r}..., transformers {sample.text[:80]!r}..."]
    return []


def check_distance(quant: str, distance: Distance) -> list[str]:
    """The predictions are as near the reference as the type allows."""
    largest, smallest = limits(quant)
    faults = []
    if not distance.kl_divergence <= largest:
        faults.append(f"its KL divergence to transformers is {distance.kl_divergence:.4f}, more than {largest}")
    if not distance.same_top >= smallest:
        faults.append(f"it agrees with transformers on {distance.same_top:.0%} of tokens, fewer than {smallest:.0%}")
    return faults


def check_changes(shares: Mapping[str, tuple[float, float]]) -> list[str]:
    """Every layer holds the whole of its adapter: `shares` gives, by layer, the share found and its standard error."""
    faults = []
    for layer, (share, error) in shares.items():
        if abs(share - 1.0) > 0.05 + 6.0 * error:
            faults.append(f"{layer} holds {share:.2f} times what its adapter adds (should be 1.00 +- {error:.2f})")
    return faults[:3]


def distance(reference: list[Floats], found: list[Floats], sequences: list[tuple[int, ...]]) -> Distance:
    """Compare logits `[n, n_vocab]`, sequence by sequence; a vocabulary's padding is left out."""
    divergences: list[float] = []
    same: list[bool] = []
    ratio = 0.0
    scored = 0
    for truth, guess, ids in zip(reference, found, sequences, strict=True):
        width = min(truth.shape[1], guess.shape[1])
        p, q = _log_softmax(truth[:, :width]), _log_softmax(guess[:, :width])
        divergences += list(np.sum(np.exp(p) * (p - q), axis=1))
        same += list(p.argmax(axis=1) == q.argmax(axis=1))
        following = np.array(ids[1:])
        positions = np.arange(len(following))
        ratio += float(np.sum(p[positions, following] - q[positions, following]))
        scored += len(following)
    return Distance(
        float(np.mean(divergences)), float(np.mean(same)), float(np.exp(ratio / max(scored, 1))), len(divergences)
    )


def _log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def _difference(sample: Sample, found: tuple[int, ...], model: Model) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(sample.ids, found, strict=False)) if a != b), min(len(sample.ids), len(found))
    )
    theirs, ours = sample.ids[at : at + 8], found[at : at + 8]
    text = model.decode_text(ours, special=True)
    return f"it splits text otherwise than the original tokenizer: {list(ours)} ({text!r}) for {list(theirs)}"


def _special_tokens(model: Model, header: Header, tokens: Tokens) -> list[str]:
    kinds = token_types(header)
    for index, text in tokens.special.items():
        if index >= tokens.embedded:  # one that the tokenizer's class invents (Gemma's <mask>): no weights, never used
            continue
        if index >= model.n_vocab:
            return [f"the special token {text} ({index}) is not in its vocabulary"]
        if tuple(model.encode(text)) != (index,):
            return [f"the special token {text} is not one token: it becomes {model.encode(text)}"]
        if text in tokens.tags:
            continue
        if kinds is not None and kinds[index] not in (CONTROL, UNKNOWN):
            return [f"the special token {text} is an ordinary token (type {kinds[index]}, should be {CONTROL})"]
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
