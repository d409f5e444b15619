"""Tiny GGUFs with random weights whose layers remember a state: Mamba's all, every other one of the LFM2-shaped."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import tiny_gemma

WIDTH, LAYERS, N_CTX = 256, 4, 512


def write_mamba(path: Path) -> Path:
    """Recurrent: no cache at all."""
    inner, state, rank, kernel = 2 * WIDTH, 16, 16, 4
    writer = _writer(path, "mamba")
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    random = _Random(writer)
    random.ones("output_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        random.ones(f"{block}.attn_norm")
        random.matrix(f"{block}.ssm_in.weight", 2 * inner, WIDTH)
        random.matrix(f"{block}.ssm_conv1d.weight", inner, kernel)
        random.matrix(f"{block}.ssm_conv1d.bias", inner)
        random.matrix(f"{block}.ssm_x.weight", rank + 2 * state, inner)
        random.matrix(f"{block}.ssm_dt.weight", inner, rank)
        random.matrix(f"{block}.ssm_dt.bias", inner)
        writer.add_tensor(f"{block}.ssm_a", -np.tile(np.arange(1, state + 1, dtype=np.float32) / 8, (inner, 1)))
        random.matrix(f"{block}.ssm_d", inner)
        random.matrix(f"{block}.ssm_out.weight", WIDTH, inner)
    return _written(writer, path)


def write_hybrid(path: Path) -> Path:
    """Convolutions with a state, and attention with a cache, in turns."""
    heads, inner, cache = 4, 512, 3
    writer = _writer(path, "lfm2")
    writer.add_head_count(heads)
    writer.add_head_count_kv([0, 2] * (LAYERS // 2))
    writer.add_feed_forward_length(inner)
    writer.add_rope_freq_base(1e6)
    writer.add_shortconv_l_cache(cache)
    random = _Random(writer)
    random.ones("token_embd_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        random.ones(f"{block}.attn_norm")
        random.ones(f"{block}.ffn_norm")
        random.matrix(f"{block}.ffn_gate.weight", inner, WIDTH)
        random.matrix(f"{block}.ffn_up.weight", inner, WIDTH)
        random.matrix(f"{block}.ffn_down.weight", WIDTH, inner)
        if layer % 2:
            random.ones(f"{block}.attn_q_norm", WIDTH // heads)
            random.ones(f"{block}.attn_k_norm", WIDTH // heads)
            random.matrix(f"{block}.attn_q.weight", WIDTH, WIDTH)
            random.matrix(f"{block}.attn_k.weight", WIDTH // 2, WIDTH)
            random.matrix(f"{block}.attn_v.weight", WIDTH // 2, WIDTH)
            random.matrix(f"{block}.attn_output.weight", WIDTH, WIDTH)
        else:
            random.matrix(f"{block}.shortconv.conv.weight", WIDTH, cache)
            random.matrix(f"{block}.shortconv.in_proj.weight", 3 * WIDTH, WIDTH)
            random.matrix(f"{block}.shortconv.out_proj.weight", WIDTH, WIDTH)
    return _written(writer, path)


class _Random:
    """Adds tensors of random numbers, each column's sum of squares about one."""

    def __init__(self, writer: gguf.GGUFWriter) -> None:
        self._writer = writer
        self._generator = np.random.default_rng(0)
        self.matrix("token_embd.weight", tiny_gemma.N_VOCAB, WIDTH)

    def matrix(self, name: str, *shape: int) -> None:
        values = self._generator.normal(0, shape[-1] ** -0.5, shape) * (2 if name.startswith("token_embd") else 1)
        self._writer.add_tensor(name, values.astype(np.float32))

    def ones(self, name: str, width: int = WIDTH) -> None:
        self._writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))


def _writer(path: Path, architecture: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tiny_gemma.N_VOCAB)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    tiny_gemma.add_vocabulary(writer)
    writer.add_chat_template(tiny_gemma.TEMPLATE)
    return writer


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
