"""The collecting process: `python -m ftllm.export.collector` measures an importance matrix on a GGUF and stores it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.export.worker import Channel, Progress, serve


def run(job: dict[str, Any], channel: Channel) -> None:
    """Evaluate the text, and write the matrix.

    Args:
        job: `model` (its file, or first shard), `out`, and what `Calibration.job` describes.
    """
    from ftllm.export import calibration, importance
    from ftllm.llama.activations import collect
    from ftllm.llama.model import Model

    started = time.monotonic()
    text, out, progress = calibration.Calibration.of_job(job), Path(job["out"]), Progress(channel)
    with Model.load(Path(job["model"])) as model:
        rows = calibration.rows_of(text, model)
        lengths = [len(row) for row in rows]
        total = sum(lengths)
        if not total:
            raise UserError("there is no text to measure an importance matrix on", "give one with --imatrix FILE")
        channel.send("texts", tokens=total)
        found = collect(model, rows, on_row=lambda index: progress(sum(lengths[: index + 1]), total))
    importance.save(
        out,
        {name: sums.astype("float32") for name, sums in found.sums.items()},
        {name: counts.astype("float32") for name, counts in found.counts.items()},
        dataset=text.origin,
        chunks=max(1, total // calibration.CHUNK),
        chunk_size=calibration.CHUNK,
    )
    channel.send("collected", tokens=total, rows=len(rows), seconds=time.monotonic() - started)


if __name__ == "__main__":
    serve(run)
