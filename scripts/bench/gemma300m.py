"""A GGUF of 310 M parameters in Gemma 3's shape, with its 262,144 tokens and random weights, in Q4_K_M: for benchmarks.

    python scripts/bench/gemma300m.py FILE.gguf     # 250 MB; needs 1.3 GB beside it while it is made

Every row is a multiple of 256 long, so that all matrices get the type Q4_K_M plans for them. A byte is a token.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import gguf
import numpy as np

from ftllm.files import whole_file
from ftllm.llama.quantize import quantize

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, HEAD, WINDOW = 262_144, 768, 3072, 12, 4, 256, 1024
N_CTX = 32_768
SPREAD = 4.0
"""The logits' standard deviation. With 1, as random weights give it by themselves, thousands of tokens stay within a
factor of twenty of the likeliest, which no trained model shows; with 4 it is a few. The factors of the last norm that
make it so have random signs: the output matrix is the embedding's too, and would give back the token that was read.
"""
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def write(path: Path) -> None:
    """Make the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix(".f16.gguf")
    try:
        write_plain(plain)
        with whole_file(path) as partial:
            quantize(plain, partial, "Q4_K_M")
    finally:
        plain.unlink(missing_ok=True)


def write_plain(path: Path) -> None:
    """The weights in 16 bits."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("Gemma 3 shape, 310M, random")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(WINDOW)
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
    add_vocabulary(writer)
    writer.add_chat_template(TEMPLATE)
    generator = np.random.default_rng(3407)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = generator.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def norm(name: str, width: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    matrix("token_embd", VOCABULARY, WIDTH)
    signs = generator.choice(np.array([-1, 1], np.float32), WIDTH)
    writer.add_tensor("output_norm.weight", SPREAD * signs)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            norm(f"{block}.{name}", WIDTH)
        norm(f"{block}.attn_q_norm", HEAD)
        norm(f"{block}.attn_k_norm", HEAD)
        matrix(f"{block}.attn_q", HEADS * HEAD, WIDTH)
        matrix(f"{block}.attn_k", HEAD, WIDTH)
        matrix(f"{block}.attn_v", HEAD, WIDTH)
        matrix(f"{block}.attn_output", WIDTH, HEADS * HEAD)
        matrix(f"{block}.ffn_gate", INNER, WIDTH)
        matrix(f"{block}.ffn_up", INNER, WIDTH)
        matrix(f"{block}.ffn_down", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Control tokens, the bytes, ASCII, and words up to the vocabulary's size; every fortieth ends a paragraph."""
    pieces = [(text, gguf.TokenType.CONTROL) for text in CONTROL]
    pieces += [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    pieces += [("▁" if code == 32 else chr(code), gguf.TokenType.NORMAL) for code in (10, *range(32, 127))]
    words = (f"▁w{number}" if number % 40 else f"▁w{number}.\n\n" for number in range(VOCABULARY - len(pieces)))
    pieces += [(word, gguf.TokenType.NORMAL) for word in words]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([-float(index) for index in range(len(pieces))])
    writer.add_token_types([int(kind) for _, kind in pieces])
    writer.add_bos_token_id(CONTROL.index("<bos>"))
    writer.add_eos_token_id(CONTROL.index("<eos>"))
    writer.add_unk_token_id(CONTROL.index("<unk>"))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
