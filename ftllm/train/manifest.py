"""What a run's manifest says before training; results are added as they come."""

from __future__ import annotations

from typing import Any

from ftllm.errors import UserError
from ftllm.runs import Run, environment, now
from ftllm.train import backend, lineage
from ftllm.train.prepare import Prepared, warnings_of


def first(run: Run, prepared: Prepared) -> dict[str, Any]:
    """What is known before training; written when the weights are loaded.

    Raises:
        UserError: the parent's adapter was trained on another base.
    """
    plan, device, parent = prepared.plan, prepared.device, prepared.parent
    found = prepared.base.record()
    if parent is not None:
        lineage.require_same_base(parent, prepared.base, found["files"])
    return {
        "status": "running",
        "name": run.name,
        "started": now(),
        "finished": None,
        "base": found,
        "from": parent.record() if parent else None,
        "data": list(prepared.corpus.files),
        "config": prepared.decided.model_dump(mode="json"),
        "seed": prepared.config.seed,
        "backend": prepared.backend,
        "device": device.kind,
        "threads": backend.threads(),
        "processes": prepared.processes.count,
        "precision": {
            "weights": "nf4" if device.four_bit else device.precision,
            "compute": device.precision,
            "adapter": "float32",
            "merged_into": prepared.base.precision,
        },
        "steps": prepared.steps,
        "rows": {
            "training": len(plan.units),
            "held_out": len(prepared.corpus.held_out),
            "tokens": plan.tokens,
            "trained_tokens": plan.trained,
            "longest": plan.longest,
            "dropped": [source for source, _ in plan.dropped],
            "cut": [source for source, _ in plan.cut],
            "masked": list(plan.masked),
            "refused": [{"source": row.source, "reason": row.reason} for row in plan.refused],
        },
        "noise": {
            "unit": prepared.config.noise.unit,
            "share_moved": round(plan.share_moved, 6),
            "moved": plan.moved,
            "units": plan.units_of_text,
        },
        "notes": warnings_of(prepared),
        "results": {},
        **environment(),
    }


def require_same(what: str, before: Any, after: Any) -> None:
    """Refuse to resume on other inputs than a run began with.

    Raises:
        UserError: they differ.
    """
    if before != after:
        raise UserError(f"the {what} has changed since this run began", "restore the files, or start a new run")
