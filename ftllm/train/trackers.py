"""TensorBoard, Weights & Biases and trackio: where a run's metrics go besides its own files, when asked to.

None is a dependency and none is imported unless `report_to` names it. What is sent is what `metrics.jsonl` has, and the
resolved configuration; no code, no console output, no data.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from typing import Any

from ftllm.errors import UserError
from ftllm.progress import Reporter
from ftllm.runs import Run
from ftllm.train.processes import Processes

PROJECT = "ftllm"
Track = Callable[[dict[str, Any]], None]
Send = Callable[[dict[str, float], int], None]


def require(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed, before anything is trained.

    Raises:
        UserError: naming the first, and how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"report_to names {name}, which is not installed", f"pip install {name}")


@contextmanager
def tracking(
    names: Sequence[str],
    run: Run,
    config: dict[str, Any],
    step: int,
    reporter: Reporter,
    processes: Processes,
    *,
    offline: bool,
) -> Iterator[Track]:
    """Yield a function that sends each step's metrics to the trackers; a failure there is said, and stops nothing.

    Args:
        names: of the trackers.
        run: what is tracked; one that is resumed goes on in the trackers too.
        config: its resolved configuration.
        step: that it goes on after; 0 for a new one.
        reporter: where failures are said.
        processes: of which the first alone sends anything.
        offline: whether the network is not to be touched.

    Raises:
        UserError: a tracker cannot begin.
    """
    with ExitStack() as stack:
        sends: dict[str, Send] = {}
        for name in names if processes.first else ():
            opened = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[name]
            try:
                sends[name] = stack.enter_context(opened(run, config, step, offline))
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{name} cannot begin: {reason}", HINTS[name]) from error

        def track(reading: dict[str, Any]) -> None:
            numbers = {key: value for key, value in reading.items() if key != "step" and isinstance(value, int | float)}
            for name in list(sends):
                try:
                    sends[name](numbers, reading["step"])
                except Exception as error:
                    del sends[name]
                    reporter.warn(f"{name} failed and is left out from here on: {' '.join(str(error).split())[:200]}")

        yield track


HINTS = {
    "tensorboard": "can its directory in the run be written?",
    "wandb": "`wandb login` first, or keep it on this machine with WANDB_MODE=offline",
    "trackio": "leave it out of report_to",
}


@contextmanager
def _tensorboard(run: Run, config: dict[str, Any], step: int, _offline: bool) -> Iterator[Send]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None)
    try:
        if not step:
            writer.add_text("configuration", "\n".join(f"    {key}: {value}" for key, value in config.items()))

        def send(numbers: dict[str, float], at: int) -> None:
            for key, value in numbers.items():
                writer.add_scalar(key, value, at)

        yield send
    finally:
        writer.close()


@contextmanager
def _wandb(run: Run, config: dict[str, Any], _step: int, offline: bool) -> Iterator[Send]:
    import wandb

    identity = hashlib.sha256(f"{run.path} {run.read_manifest().get('started')}".encode()).hexdigest()[:12]
    quiet = wandb.Settings(console="off", disable_git=True, disable_code=True, silent=True)
    session = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=identity,
        resume="allow",
        dir=str(run.path),
        config=config,
        mode="offline" if offline else None,
        settings=quiet,
    )
    ended = 1
    try:
        yield lambda numbers, at: session.log(numbers, step=at)
        ended = 0
    finally:
        with suppress(Exception):
            session.finish(exit_code=ended)


@contextmanager
def _trackio(run: Run, config: dict[str, Any], _step: int, offline: bool) -> Iterator[Send]:
    import trackio

    if offline and os.environ.get("TRACKIO_SPACE_ID"):
        raise UserError("TRACKIO_SPACE_ID names a Space, and this is offline")
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    with redirect_stdout(io.StringIO()):  # it greets where data goes
        trackio.init(project=project, name=run.name, config=config, resume="allow", embed=False)
    try:
        yield lambda numbers, at: trackio.log(numbers, step=at)
    finally:
        with suppress(Exception), redirect_stdout(io.StringIO()):
            trackio.finish()
