"""Can this build of llama.cpp repack quantized weights for this processor without crashing?

llama.cpp built with GCC 12 crashes on processors with AMX as soon as quantized weights are multiplied
(https://github.com/ggml-org/llama.cpp/issues/20824). A child process tries, once per machine and build, on a
tiny model with every type that is repacked; the answer is kept in the user's cache. Without repacking, such
a machine works, only slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftllm.errors import UserError, WorkError
from ftllm.files import write_json
from ftllm.llama import native

TIMEOUT = 60  # seconds; the probe takes less than one
PLAIN, REPACKED = "plain works", "repacked works"  # what the child prints as it gets on
LARGEST_ERROR = 0.3  # share of the logits' spread; repacked kernels round activations a little differently

# Types with kernels of their own in ggml-cpu/amx and ggml-cpu/repack.cpp, by tensor.
WEIGHTS = {
    "blk.0.attn_q": "Q4_0",
    "blk.0.attn_k": "Q4_1",
    "blk.0.attn_v": "Q8_0",
    "blk.0.attn_output": "Q5_K",
    "blk.0.ffn_gate": "Q4_K",
    "blk.0.ffn_up": "IQ4_XS",
    "blk.0.ffn_down": "Q6_K",
    "blk.1.attn_q": "IQ4_NL",
    "blk.1.attn_k": "Q2_K",
    "blk.1.attn_v": "Q3_K",
    "blk.1.attn_output": "Q5_0",
    "blk.1.ffn_gate": "Q5_1",
    "blk.1.ffn_up": "F16",
    "blk.1.ffn_down": "Q4_K",
    "token_embd": "Q8_0",
    "output": "Q6_K",
}
WIDTH, INNER, N_VOCAB, N_LAYER = 256, 512, 64, 2


@cache
def extra_buffers_work() -> bool:
    """Whether weights may be repacked (`use_extra_bufts`) here; from the cache when this was asked before.

    Raises:
        WorkError: llama.cpp crashes here even without repacking.
    """
    place = cache_file()
    key = fingerprint()
    try:
        known = json.loads(place.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        known = None
    if isinstance(known, bool):
        return known
    answer = ask_child()
    with contextlib.suppress(OSError, UserError):  # then it is asked again next time
        write_json(place, {key: answer})
    return answer


def cache_file() -> Path:
    """Where the answer is remembered."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("ftllm")) / "llama-probe.json"


def fingerprint() -> str:
    """A name for this processor and this build: CPU flags, and the native files' names, sizes and times."""
    files = sorted(path for path in native.library_path().parent.iterdir() if path.is_file())
    build = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    machine = [platform.system(), platform.machine(), _cpu_flags()]
    return hashlib.sha256(repr((machine, build)).encode()).hexdigest()


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())


def ask_child(command: tuple[str, ...] = (sys.executable, "-m", "ftllm.llama.probe")) -> bool:
    """Run the probe in a child process and judge how it ended."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": ""}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
        )
        output, ending = child.stdout, f"exit code {child.returncode}"
    except subprocess.TimeoutExpired as expired:
        written = expired.stdout or b""
        output, ending = written.decode() if isinstance(written, bytes) else written, f"no answer in {TIMEOUT} s"
    if REPACKED in output:
        return True
    if PLAIN in output:
        return False
    raise WorkError(
        f"llama.cpp does not run quantized models on this machine ({ending})",
        "install llama-cpp-python again, built for this processor; see the README",
    )


def write_model(path: Path) -> None:
    """Write a tiny Llama-shaped GGUF whose weights are of all repacked types."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(N_VOCAB)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    generator = np.random.default_rng(0)
    for name, kind in WEIGHTS.items():
        rows, columns = WIDTH, WIDTH
        if "ffn" in name:
            rows, columns = (WIDTH, INNER) if "down" in name else (INNER, WIDTH)
        elif name in ("token_embd", "output"):
            rows, columns = N_VOCAB, WIDTH
        values = generator.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)
        number = GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", quantize_rows(values, int(number)), raw_dtype=number)
    norms = [f"blk.{layer}.{norm}" for layer in range(N_LAYER) for norm in ("attn_norm", "ffn_norm")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize_rows(values: NDArray[np.float32], number: int) -> NDArray[np.uint8]:
    """Rows [n, columns] of float32 as rows [n, bytes] of ggml type `number`, by libggml's `ggml_quantize_chunk`."""
    row_size = native.ggml("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)
    quantize = native.ggml(
        "ggml_quantize_chunk",
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    rows, columns = values.shape
    source = np.ascontiguousarray(values)
    target = np.empty((rows, row_size(number, columns)), dtype=np.uint8)
    quantize(number, source.ctypes.data, target.ctypes.data, 0, rows, columns, None)
    return target


def run_model(path: Path, *, repack: bool) -> NDArray[np.float32]:
    """Logits [2, n_vocab] after a prompt of 40 tokens and after one more: matrix and vector kernels."""
    api = native.api()
    model_params = api.llama_model_default_params()
    model_params.use_extra_bufts = repack
    model_params.n_gpu_layers = 0
    model = api.llama_model_load_from_file(os.fsencode(path), model_params)
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 64, 64
    params.n_threads = params.n_threads_batch = 1  # two would wait for each other for seconds on a busy machine
    context = api.llama_init_from_model(model, params)
    results = []
    for tokens in (list(range(1, 41)), [41]):
        array = (ctypes.c_int32 * len(tokens))(*tokens)  # the batch only points at it
        if api.llama_decode(context, api.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")
        results.append(np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (N_VOCAB,)).copy())
    api.llama_free(context)
    api.llama_model_free(model)
    return np.stack(results)


def main() -> None:
    """The child: print a line for each way that works; crash, or stop early, where one does not."""
    with tempfile.TemporaryDirectory(prefix="ftllm-probe-") as directory:
        path = Path(directory) / "probe.gguf"
        write_model(path)
        plain = run_model(path, repack=False)
        if not np.isfinite(plain).all():
            raise SystemExit("plain weights gave no numbers")
        print(PLAIN, flush=True)
        repacked = run_model(path, repack=True)
        error: Any = np.abs(repacked - plain).max() / plain.std()
        if not error <= LARGEST_ERROR:
            raise SystemExit(f"repacked weights gave other logits: {error:.3f} of their spread")
        print(REPACKED, flush=True)


if __name__ == "__main__":
    main()
