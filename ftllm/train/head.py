"""The output head in plain torch, for devices that TRL's Triton kernel does not run on.

TRL 1.15 computes its loss through a Triton kernel. torch's CPU builds (Windows' and macOS' too) come without Triton,
and where a CUDA build brings it to a machine without a GPU it finds no driver: both ways `SFTTrainer` fails at its
first step. `install` gives it this function instead, with the same arguments.
"""

from __future__ import annotations

from typing import Any

CHUNK_VALUES = 2**25  # logits held at once: 128 MiB in float32


def install(device: str) -> bool:
    """Give TRL a head that runs on `device` (`cuda`, `mps` or `cpu`); True when its own would not."""
    from trl.trainer import utils

    if device == "cuda" and utils._ChunkedLogProbFunction is not None:
        return False
    utils._ChunkedLogProbFunction = TorchHead
    return True


class TorchHead:
    """Stands where TRL keeps its autograd function; `apply` is all that is called."""

    @staticmethod
    def apply(
        hidden: Any,
        weight: Any,
        bias: Any,
        targets: Any,
        temperature: float,
        _tile: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[Any, Any, None, None, Any]:
        """Log-probabilities of `targets` under `softmax(head(hidden))`, without holding all logits at once.

        Args:
            hidden: [N, width].
            weight: [vocabulary, width].
            bias: [vocabulary], or None.
            targets: token ids, int64 [N].
            temperature: the logits are divided by it.
            softcap: `softcap * tanh(logits / softcap)`, as in Gemma 2; None: not.
            scale: the logits are multiplied by it.
            outputs: what is wanted besides.

        Returns:
            log-probabilities, float32 [N]; `entropy` in nats [N] and `is_top1`, bool [N], without gradient, where
            they are wanted, else None; the two other outputs of TRL's function are never asked for here.
        """
        import torch
        from torch.utils.checkpoint import checkpoint

        def part(hidden: Any, targets: Any) -> tuple[Any, Any, Any]:
            logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype), bias).float() * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logits = logits / temperature
            log_z = torch.logsumexp(logits, dim=-1)
            chosen = logits.gather(1, targets[:, None])[:, 0]
            with torch.no_grad():
                entropy = log_z - (torch.exp(logits - log_z[:, None]) * logits).sum(-1)
                top = logits.argmax(-1) == targets
            return chosen - log_z, entropy, top

        size = max(1, CHUNK_VALUES // weight.shape[0])
        pieces = list(zip(hidden.split(size), targets.split(size), strict=True))
        if len(pieces) == 1:
            log_probs, entropy, top = part(hidden, targets)
        else:
            results = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
            log_probs, entropy, top = (torch.cat(column) for column in zip(*results, strict=True))
        return log_probs, entropy if "entropy" in outputs else None, None, None, top if "is_top1" in outputs else None
