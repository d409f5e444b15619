"""The table of files on a GGUF repository's card, and the recommendation drawn from it."""

from __future__ import annotations

from collections.abc import Sequence

from ftllm.hub.facts import Quantization
from ftllm.hub.markdown import code, table

# Below this a model is hard to tell from the unquantized one: Q4_K_M lies near 0.03 on the models llama.cpp publishes
# figures of (its tools/perplexity/README.md), Q3_K_M near 0.09.
LITTLE = 0.05
HEAD = ("Link", "Type", "Size/GB", "bits per weight", "KL divergence", "same top token", "likelihood", "notes")
NUMBERS = (2, 3, 4, 5, 6)


def recommended(items: Sequence[Quantization]) -> Quantization | None:
    """The smallest file that loses little, else the one that loses least; None where nothing was measured."""
    measured = [item for item in items if item.figure("kl_divergence") is not None]
    little = [item for item in measured if (item.figure("kl_divergence") or 0.0) <= LITTLE]
    if little:
        return min(little, key=lambda item: item.bytes)
    return min(measured, key=lambda item: item.figure("kl_divergence") or 0.0, default=None)


def recommendation(items: Sequence[Quantization]) -> str:
    """Why that file, in a sentence or two; empty where nothing was measured."""
    best = recommended(items)
    if best is None:
        return ""
    divergence = best.figure("kl_divergence") or 0.0
    others = [item for item in items if item.figure("kl_divergence") is not None and item is not best]
    if divergence > LITTLE:
        return (
            f"**{best.type}** loses least of these files, yet not little: its KL divergence is {divergence:.4f} nats "
            f"a token, more than {LITTLE:g}."
        )
    text = (
        f"Take **{best.type}** ({size(best.bytes)} GB): the smallest of these files whose KL divergence from the "
        f"unquantized model is at most {LITTLE:g} nats a token ({divergence:.4f})."
    )
    smaller = [item for item in others if item.bytes < best.bytes]
    if smaller:
        worst = max(smaller, key=lambda item: item.bytes)
        text += f" The next smaller one, {worst.type}, is at {worst.figure('kl_divergence'):.4f}."
    return text


def files_table(items: Sequence[Quantization], repo: str, revision: str, endpoint: str) -> str:
    """The table, smallest file first."""
    best = recommended(items)
    most = max(map(_thoroughness, items), default=0.0)
    rows = [
        [
            "<br>".join(f"[{name}]({endpoint}/{repo}/resolve/{revision}/{name})" for name in names(item)),
            item.type,
            size(item.bytes),
            f"{item.bits_per_weight:.2f}",
            shown(item.figure("kl_divergence"), ".4f"),
            shown(item.figure("same_top"), ".1%"),
            shown(item.figure("nll"), ".4f"),
            notes(item, item is best, _thoroughness(item) < most),
        ]
        for item in sorted(items, key=lambda item: (item.bytes, item.name))
    ]
    return table(HEAD, rows, NUMBERS)


def how_measured(items: Sequence[Quantization]) -> str:
    """What the columns mean, and on what they were measured; empty where nothing was."""
    item = max(items, key=_thoroughness)
    if item.figure("kl_divergence") is None:
        return "These files were not compared with the unquantized model."
    positions = item.figure("positions")
    measured_on = str(item.figures.get("text") or "short samples")
    over = f", over {positions:.0f} positions of {measured_on}" if positions else ""
    text = (
        f"KL divergence (nats a token) and same top token: each file in llama.cpp against the unquantized model in "
        f"transformers, in float32{over}."
    )
    if item.figure("nll") is not None:
        reference = item.figure("reference_nll")
        unquantized = f"; the unquantized model's is {reference:.4f}" if reference is not None else ""
        text += f" Likelihood: negative log-likelihood per assistant token of {measured_on}, in nats{unquantized}."
    else:
        text += " Likelihood: not measured per file."
    return text


def _thoroughness(item: Quantization) -> float:
    """On how many positions a file was compared."""
    return item.figure("positions") or 0.0


def names(item: Quantization) -> list[str]:
    return [path.name for path in item.paths]


def size(count: int) -> str:
    """Decimal gigabytes with three digits, as the Hub counts."""
    value = count / 1e9
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def shown(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def notes(item: Quantization, best: bool, less: bool = False) -> str:
    """What else to know about a file: `best` of all, or compared on `less` text than others."""
    found = ["recommended"] if best and (item.figure("kl_divergence") or 0.0) <= LITTLE else []
    if item.imatrix:
        found.append("importance matrix")
    fallbacks, tensors = item.entry.get("fallbacks"), item.entry.get("tensors")
    if isinstance(fallbacks, int) and fallbacks and isinstance(tensors, int):
        found.append(f"{fallbacks} of {tensors} tensors take a larger type, their rows do not divide into blocks")
    if len(item.paths) > 1:
        found.append(f"{len(item.paths)} parts; open the first")
    if item.figure("kl_divergence") is None:
        found.append("not verified")
    elif less:
        found.append(f"compared on {_thoroughness(item):.0f} positions only")
    return ", ".join(found)


def commands(items: Sequence[Quantization], repo: str) -> list[tuple[str, str, str]]:
    """How to run it: title, what to say, and the code."""
    best = recommended(items) or min(items, key=lambda item: item.bytes)
    named = f"{repo}:{best.type}"
    whole = [best] if len(best.paths) == 1 else [item for item in items if len(item.paths) == 1]
    return [
        ("ftllm", "", f"ftllm chat {named}"),
        ("llama.cpp", "", f"llama-cli -hf {named}\nllama-server -hf {named}"),
        *([("Ollama", "", f"ollama run hf.co/{repo}:{whole[0].type}")] if whole else []),  # it reads no shards
        (
            "LM Studio",
            f"Search for {code(repo)} in the model search, or",
            f"lms get https://huggingface.co/{repo}@{best.type}",
        ),
    ]
