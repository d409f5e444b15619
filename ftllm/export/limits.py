"""How far a quantized file may be from its source: every threshold of the verification, and where it comes from.

| what | bound | from |
| --- | --- | --- |
| error of a tensor | `ERROR_BOUNDS`, by its type | three times what the format does to normal weights |
| KL divergence, same top token | `LIMITS`, by the file's type | several times what the nano model loses |
| likelihood per assistant token | the KL divergence's a nat, either way | on its own text a model loses just that |
| the reference's own, to training's | `TRAINED` nats, either way | measured in 16 bits; another base is far off |
| share of an adapter in a layer | 1 +- (0.05 + 6 standard errors) | quantization adds noise to it, and no bias |
| a norm | 0.001 of its size | norms stay float32 in every type |

Bounds on predictions must be loose, for a small model loses more than a large one. They are not what finds a small
fault in a low-bit file: norms, row orders, the adapter's share and every tensor's error are looked at for themselves.

The same top token counts only where the reference is decided (its best token at least twice as likely as any other),
from `DECIDED` such positions on: where two tokens are nearly as likely, rounding alone swaps them, and a right random
model "agreed" on 49 %. This cannot let a fault through that moves probability: the KL divergence counts every position,
decided or not. What it leaves out is a swap between near-equals, which costs next to no divergence, and is none.
"""

from __future__ import annotations

from ftllm.errors import UserError
from ftllm.llama.perplexity import Distance

# Largest root-mean-square error of a tensor, relative to its own root mean square; a scrambled or unscaled block is
# far beyond.
ERROR_BOUNDS = {
    "F32": 0.0, "F16": 0.002, "BF16": 0.005, "Q8_0": 0.02, "Q6_K": 0.06, "Q5_K": 0.12, "Q5_0": 0.15, "Q5_1": 0.12,
    "Q4_K": 0.25, "Q4_0": 0.30, "Q4_1": 0.25, "IQ4_NL": 0.25, "IQ4_XS": 0.25, "Q3_K": 0.45, "IQ3_S": 0.45,
    "IQ3_XXS": 0.60, "Q2_K": 0.75,
}  # fmt: skip

# Largest mean Kullback-Leibler divergence (nats a token, transformers float32 against llama.cpp) and smallest share of
# decided positions with the same likeliest token, by the bits a type has. The nano model shows 0.06 and 80 % at Q4_K_M
# on the samples; larger models lose less. Float types differ by rounding only: llama.cpp keeps its KV cache in 16 bits.
LIMITS = {
    "F32": (0.001, 0.97), "F16": (0.002, 0.96), "BF16": (0.02, 0.93), "Q8_0": (0.03, 0.88), "Q6_K": (0.06, 0.82),
    "Q5": (0.15, 0.72), "Q4": (0.5, 0.55), "Q3": (1.2, 0.40), "Q2": (3.0, 0.25),
}  # fmt: skip
DECIDED = 20  # positions beyond doubt that it takes to judge by the likeliest token
SHARE, SHARE_ERRORS = 0.05, 6.0
NORM = 0.001
TRAINED = 0.1


def limits(quant: str) -> tuple[float, float]:
    """The bounds for a file type: its own, or those of its bits (`IQ4_XS` -> `Q4`)."""
    if quant in LIMITS:
        return LIMITS[quant]
    bits = next((character for character in quant if character.isdigit()), "2")
    return LIMITS.get(f"Q{bits}", LIMITS["Q2"])


def judge_distance(quant: str, distance: Distance) -> list[str]:
    """The predictions are as near the reference as the type allows."""
    largest, smallest = limits(quant)
    faults = []
    if not distance.kl_divergence <= largest:
        faults.append(f"its KL divergence to transformers is {distance.kl_divergence:.4f}, more than {largest}")
    if distance.decided >= DECIDED and not distance.same_top_decided >= smallest:
        share = f"{distance.same_top_decided:.0%} of the tokens that are beyond doubt"
        faults.append(f"it agrees with transformers on {share}, fewer than {smallest:.0%}")
    return faults


def judge_likelihood(quant: str, nll: float, reference: float) -> list[str]:
    """The likelihood per assistant token is as near the reference's as the type allows; both in nats.

    On text that a model was not made for (14 nats a token) rounding moves the unlikely tokens that count there by more
    than the divergence, about as their own size goes: the nano model's first two layers lose 0.044 at Q8_0.
    """
    largest = limits(quant)[0] * max(1.0, reference)
    if abs(nll - reference) <= largest:
        return []
    return [f"its likelihood is {nll:.4f} nats a token where transformers gives {reference:.4f}"]


def require_trained(nll: float, tokens: int, trained: float, trained_tokens: int) -> None:
    """Base and adapter must give what training measured at its end, where the very same tokens were measured.

    Raises:
        UserError: they do not.
    """
    if tokens == trained_tokens and not abs(nll - trained) <= TRAINED:
        raise UserError(
            f"base and adapter give {nll:.4f} nats a token on what was held out, where training measured {trained:.4f}",
            "one of them is not what was trained; is it the right --base?",
        )
