"""A tiny Gemma-3-shaped GGUF with random weights, written with the gguf package: windows, byte fallback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH, INNER, HEADS, HEAD_WIDTH, LAYERS, WINDOW, N_CTX = 256, 512, 4, 64, 7, 16, 512
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WORDS = [*" abcdefghijklmnopqrstuvwxyz0123456789.,?!:+=", " the", " a", "th", "the", "in", " in", "\n", "\n\n"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PAD, EOS, BOS, UNKNOWN, START_OF_TURN, END_OF_TURN = range(6)
FIRST_BYTE = 6
FIRST_WORD = FIRST_BYTE + 256
N_VOCAB = 320


def write_gemma(
    path: Path, *, seed: int = 0, scale: float = 1.0, added: Mapping[str, NDArray[np.float32]] | None = None
) -> Path:
    """A GGUF in F32; `scale` sharpens or flattens the logits, `added` is added to weights by name."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("Tiny test")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(WINDOW)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    add_vocabulary(writer)
    writer.add_chat_template(TEMPLATE)
    writer.add_float32("general.sampling.temp", 0.25)
    writer.add_int32("general.sampling.top_k", 40)
    generator = np.random.default_rng(seed)

    def add(name: str, *shape: int, gain: float = 1.0) -> None:
        values = generator.normal(0, gain * shape[-1] ** -0.5, shape).astype(np.float32)
        values += (added or {}).get(f"{name}.weight", np.float32(0))
        writer.add_tensor(f"{name}.weight", values)

    def norm(name: str, width: int, gain: float = 1.0) -> None:
        values = gain * (1 + generator.normal(0, 0.1, width))
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", N_VOCAB, WIDTH)
    add("output", N_VOCAB, WIDTH)
    norm("output_norm", WIDTH, gain=2 * scale)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            norm(f"{block}.{name}", WIDTH)
        norm(f"{block}.attn_q_norm", HEAD_WIDTH, gain=1.5)
        norm(f"{block}.attn_k_norm", HEAD_WIDTH)
        add(f"{block}.attn_q", HEADS * HEAD_WIDTH, WIDTH)
        add(f"{block}.attn_k", HEAD_WIDTH, WIDTH)
        add(f"{block}.attn_v", HEAD_WIDTH, WIDTH)
        add(f"{block}.attn_output", WIDTH, HEADS * HEAD_WIDTH)
        add(f"{block}.ffn_gate", INNER, WIDTH)
        add(f"{block}.ffn_up", INNER, WIDTH)
        add(f"{block}.ffn_down", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_lora(
    path: Path, *, seed: int, architecture: str = "gemma3", width: int = WIDTH
) -> dict[str, NDArray[np.float32]]:
    """A LoRA GGUF of rank 4 and alpha 8 on three kinds of weights; what it adds at scale 1 to each, by name."""
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    changes: dict[str, NDArray[np.float32]] = {}
    for layer in range(LAYERS):
        for name, rows in (("attn_q", HEADS * HEAD_WIDTH), ("attn_v", HEAD_WIDTH), ("ffn_up", INNER)):
            a = generator.normal(0, 0.1, (4, width)).astype(np.float32)
            b = generator.normal(0, 0.1, (rows, 4)).astype(np.float32)
            weight = f"blk.{layer}.{name}.weight"
            writer.add_tensor(f"{weight}.lora_a", a)
            writer.add_tensor(f"{weight}.lora_b", b)
            changes[weight] = 8.0 / 4 * b @ a
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changes


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Control tokens, 256 bytes, letters and a few words; padded with unused tokens."""
    pieces = [(text, gguf.TokenType.CONTROL) for text in CONTROL]
    pieces[UNKNOWN] = ("<unk>", gguf.TokenType.UNKNOWN)
    pieces += [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    pieces += [(word.replace(" ", "▁"), gguf.TokenType.NORMAL) for word in WORDS]
    pieces += [(f"<unused{i}>", gguf.TokenType.UNUSED) for i in range(N_VOCAB - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([-float(index) for index in range(len(pieces))])
    writer.add_token_types([int(kind) for _, kind in pieces])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
