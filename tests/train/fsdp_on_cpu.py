"""`ftllm` with FSDP on CPUs: torch can, accelerate asks for GPUs. This tells it otherwise, and changes nothing else."""

from __future__ import annotations

from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

begin = state.AcceleratorState.__init__


def begin_with_fsdp(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    begin(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        state.PartialState._shared_state["distributed_type"] = self.distributed_type


state.AcceleratorState.__init__ = begin_with_fsdp

from ftllm.cli.main import main  # noqa: E402 - after accelerate is told

main()
