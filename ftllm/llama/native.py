"""llama.cpp's C API, loaded once and quietly.

Everything native is reached through `api()`. What llama.cpp logs goes to a short memory and to the sinks
of `log_to`, never to the terminal.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ftllm.errors import WorkError
from ftllm.llama.environment import SHORT_SPIN

Sink = Callable[[str], None]

DEBUG, CONTINUED = 1, 5  # ggml_log_level in ggml.h

_recent: deque[str] = deque(maxlen=200)
_sinks: list[Sink] = []
_keep: list[Any] = []  # C callbacks must outlive the library's use of them
_lock = threading.Lock()
_raised: list[BaseException] = []


class _Line:
    """The line being put together: llama.cpp logs fragments, its progress dots one by one."""

    text = ""
    level = 0


@cache
def api() -> Any:
    """llama-cpp-python's ctypes module (`llama_model_load_from_file`, ...), initialised, its log captured.

    Raises:
        WorkError: llama-cpp-python is missing, or its native library does not load here.
    """
    with _set_in_environment("GOMP_SPINCOUNT", SHORT_SPIN):  # libgomp reads it when it is loaded
        try:
            from llama_cpp import llama_cpp as bindings
        except (ImportError, OSError, RuntimeError) as error:
            raise WorkError(
                f"llama.cpp does not load: {error}",
                "install it again: `pip install --force-reinstall llama-cpp-python`",
            ) from error
        callback = bindings.llama_log_callback(_on_log)
        _keep.append(callback)
        bindings.llama_log_set(callback, ctypes.c_void_p(0))
        bindings.llama_backend_init()
    return bindings


@contextmanager
def _set_in_environment(name: str, value: str) -> Iterator[None]:
    """A variable that is set for a while, and only where it is not set: what is started later does not get it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def log_callback() -> Any:
    """The callback that takes llama.cpp's log, for its companions that log on their own."""
    api()
    return _keep[0]


def version() -> str:
    """The version of llama-cpp-python in use."""
    from importlib import metadata

    return metadata.version("llama-cpp-python")


def library_path() -> Path:
    """The file of the native library that is loaded."""
    return Path(str(api()._lib._name))


def ggml(name: str, restype: Any, *argtypes: Any) -> Any:
    """A function of libggml that the bindings leave out, `ggml_quantize_chunk` for one, typed."""
    return _ggml(name, restype, argtypes)


@cache
def _ggml(name: str, restype: Any, argtypes: tuple[Any, ...]) -> Any:
    # libllama's handle finds its dependencies' symbols; loading libggml-base.so by path could map a second copy
    library = api()._lib
    if sys.platform == "win32":
        library = ctypes.CDLL(str(library_path().with_name("ggml-base.dll")))
    prototype = ctypes.CFUNCTYPE(restype, *argtypes)
    return prototype((name, library))


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can place layers on a GPU that is there."""
    return bool(api().llama_supports_gpu_offload())


def recent_log(count: int = 20) -> list[str]:
    """The last lines llama.cpp logged in this process, oldest first."""
    return list(_recent)[-count:]


@contextmanager
def log_to(sink: Sink) -> Iterator[None]:
    """Send every line llama.cpp logs to `sink` as well, from whatever thread logs it. Sinks may be nested.

    What a sink raises (a KeyboardInterrupt, say) cannot pass through native code; it is raised at the end instead.
    """
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)
        raised = _raised.copy()
        _raised.clear()
    if raised:
        raise raised[0]


@contextmanager
def captured() -> Iterator[list[str]]:
    """The lines logged meanwhile, for a failure's explanation."""
    lines: list[str] = []
    with log_to(lines.append):
        yield lines


def _on_log(level: int, text: bytes | None, _data: Any) -> None:
    """Take a fragment from native code, which no exception may pass through."""
    try:
        for line in _lines(level, (text or b"").decode("utf-8", "replace")):
            _recent.append(line)
            for sink in tuple(_sinks):
                sink(line)
    except BaseException as error:
        _raised.append(error)


def _lines(level: int, text: str) -> list[str]:
    """The lines that `text` completes, debug messages left out."""
    with _lock:
        if level != CONTINUED:
            _Line.level = level
        if _Line.level == DEBUG:
            return []
        *whole, rest = (_Line.text + text).split("\n")
        _Line.text = rest[-10_000:]
    return [line for line in whole if line.strip()]
