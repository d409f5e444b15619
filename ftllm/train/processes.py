"""The processes of one training: one by itself, or several that `torchrun` or `accelerate launch` started.

Which process this is comes from the environment that torch's launcher sets; what they say to each other goes over
torch's process group (gloo on CPUs, NCCL on NVIDIA GPUs). With one process nothing here touches torch.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ftllm.errors import UserError, WorkError
from ftllm.runs import DEFAULT_RUNS, Run

T = TypeVar("T")
CPU = "ACCELERATE_TORCH_DEVICE"
WAIT = timedelta(hours=2)  # for the first process, which hashes the base and lets the model answer, alone
LOST = ".lost"  # in a run: one of its processes has said that another is gone
GONE = re.compile(r"gloo|connection (closed|reset|refused)|broken pipe|nccl|process ?group|TCPStore", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """Which of how many this process is.

    Attributes:
        rank: 0 for the first, which alone prints and writes.
        count: on all machines.
        local_rank: on this machine.
        local_count: on this machine.
        sharded: whether the model is split over them (FSDP) rather than copied (DDP).
        accelerate: whether `accelerate launch` started them, and not torchrun.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    sharded: bool = False
    accelerate: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self) -> None:
        """Meet the others; before anything is said between them.

        Raises:
            UserError: the model is to be split by FSDP 1, which cannot put an adapter together again.
            WorkError: they cannot be reached.
        """
        if self.count == 1:
            return
        if self.sharded and os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError(
                "accelerate is set up for FSDP 1, and only FSDP 2 is supported",
                "set fsdp_version: 2 in its configuration",
            )
        import torch
        from accelerate import PartialState

        if not torch.cuda.is_available():  # else it is called cpu:0, which torch.load does not know when resuming
            os.environ.setdefault(CPU, "cpu")
        try:
            PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise WorkError(
                f"the {self.count} processes of this training cannot reach each other: {reason}",
                "check the launcher's --nnodes, --rdzv-endpoint and the network between the machines",
            ) from error

    def told(self, find: Callable[[], T]) -> T:
        """What `find` returns in the first process, in all of them; it is called there only.

        Raises:
            SystemExit: in the others, where it failed; the first says why.
        """
        if self.count == 1:
            return find()
        import torch.distributed as distributed

        box: list[Any] = [None, 1]
        try:
            if self.first:
                box = [find(), 0]
        except BaseException as error:
            box = [None, error.exit_code if isinstance(error, UserError) else 1]
            raise
        finally:
            distributed.broadcast_object_list(box, src=0)
        if box[1]:
            raise SystemExit(box[1])
        found: T = box[0]
        return found

    def gathered(self, value: T) -> list[T]:
        """Everyone's value, by rank, in all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as distributed

        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """Part from the others, when all is done."""
        if self.count > 1:
            import torch.distributed as distributed

            distributed.destroy_process_group()

    def any(self, value: bool) -> bool:
        """Whether it is true in one of them."""
        if self.count == 1:
            return value
        import torch
        import torch.distributed as distributed
        from accelerate import PartialState

        found = torch.tensor([int(value)], device=PartialState().device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return bool(found.item())


def here() -> Processes:
    """What the launcher's environment says; one process where there was none."""
    count = _number("WORLD_SIZE", 1)
    if count == 1 or "RANK" not in os.environ:
        return Processes()
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
    accelerate = any(name.startswith("ACCELERATE_") and name != CPU for name in os.environ)
    ranks = (_number("RANK", 0), count, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", count))
    return Processes(*ranks, sharded, accelerate)


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        return default


@contextmanager
def together(processes: Processes, run: Run) -> Iterator[None]:
    """While inside, the end of another process ends this one, with one clear line from one of those that are left.

    Raises:
        WorkError: another process is gone.
        SystemExit: it is, and another one says so.
    """
    if processes.first:
        (run.path / LOST).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if processes.count == 1 or not _lost(error):
            raise
        # The launcher sends SIGTERM to all when one is gone; what is said must still be said.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if speaks_for_all(run):
            raise gone(run, processes) from error
        raise SystemExit(1) from error


def speaks_for_all(run: Run) -> bool:
    """Whether this process is the first to notice that another is gone, and so the one to say it."""
    with suppress(OSError):
        (run.path / LOST).open("x").close()
        return True
    return False


def gone(run: Run, processes: Processes) -> WorkError:
    """What is said where another process is gone."""
    return WorkError(
        f"one of the {processes.count} processes of this training is gone, killed or out of memory",
        f"what it said is above; go on from the last checkpoint with: {how_to_go_on(run, processes)}",
    )


def _lost(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    import torch.distributed as distributed

    if isinstance(error, UserError):
        return False
    return isinstance(error, distributed.DistError) or bool(isinstance(error, RuntimeError) and GONE.search(str(error)))


def how_to_go_on(run: Run, processes: Processes) -> str:
    """The command that resumes a run."""
    place = "" if run.path.parent == DEFAULT_RUNS.resolve() else f" --runs {run.path.parent}"
    command = f"train --resume --name {run.name}{place}"
    return f"ftllm {command}" if processes.count == 1 else f"{_launcher(processes)} -m ftllm {command}"


def _launcher(processes: Processes) -> str:
    """How as many processes are started again."""
    if processes.accelerate:
        return "accelerate launch (with its options as before)"
    if processes.count > processes.local_count:
        return "torchrun (with its options as before)"
    return f"torchrun --nproc-per-node {processes.count}"
