"""The memory of this machine's GPUs, for those who only want to know whether a model fits.

It is asked in a process of its own: a driver, once loaded, stays, takes memory on the GPU, and may crash.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from ftllm.llama.machine import available_memory

BACKENDS = re.compile("ggml-(cuda|hip|musa|vulkan|sycl|cann|opencl)")  # for GPUs with memory of their own
ASKING = """
import json
from ftllm.llama.placement import devices
print(json.dumps([device.free for device in devices() if not device.integrated]))
"""
SECONDS = 30.0  # that a driver may take


def memory_for_models() -> int:
    """Free bytes for a model's layers, on GPUs and off; 0 where unknown. A GPU that shares the memory adds nothing."""
    free = available_memory()
    return free and free + gpu_memory()


def gpu_memory() -> int:
    """Free bytes on the GPUs that llama.cpp was built for here; 0 without one."""
    if not has_backend():
        return 0
    try:
        done = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True, timeout=SECONDS)
        return sum(map(int, json.loads(done.stdout)))
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError):
        return 0


def has_backend() -> bool:
    """Whether llama.cpp was built for GPUs, as its libraries' names tell."""
    package = find_spec("llama_cpp")
    folder = Path(package.origin or "").parent / "lib" if package else Path()
    return package is not None and any(BACKENDS.search(path.name) for path in folder.glob("*ggml*"))
