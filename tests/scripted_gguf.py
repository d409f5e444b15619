"""A real GGUF with a scripted mouth.

Its attention and feed-forward weights are zero, embeddings are one-hot, and the output matrix sends every token to
the one that follows it in a script: llama.cpp computes it as it computes any model, and what it says is known. The
last token of the prompt, which is the last character of the last message, chooses the script.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise, product
from pathlib import Path

import gguf
import numpy as np

WIDTH, N_CTX = 512, 8192
UNKNOWN, BOS, EOS, END_OF_TURN = range(4)
FIRST_BYTE = 4
END = ["<end_of_turn>"]
SCRIPTS = {
    "T": ["<th", "ink>", "Let", " me", " see.", "</thi", "nk>", "\n", "It", " is", " 42.", *END],
    "P": ["Hi ", *(f"<0x{byte:02X}>" for byte in "🙂".encode()), "!", *END],
    "L": ["la", " li", "la"],  # for ever
    "U": ["<think>", "never", " closed", *END],
    "R": ["<think", ">Well,", " hmm", " and", " hmm"],  # thinks for ever
    ">": ["So", " yes.", *END],  # after a closing tag that the engine fed
    "Q": ["x", "y", "z", *END],
    "E": ["<0x1B>", "[31m", "red", *END],
}
COINS = ["0", "1"]  # each follows "D" and both of them, equally likely, for ever
LETTERS = [chr(code) for code in range(32, 127)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<end_of_turn>{% endfor %}"
    "{% if add_generation_prompt %}{{ messages[-1]['content'][-1] }}{% endif %}"
)


def write_scripted(
    path: Path,
    scripts: Mapping[str, list[str]] = SCRIPTS,
    template: str = TEMPLATE,
    control: Collection[str] = (),
) -> Path:
    """Write the model. What a token is followed by must not depend on the script it is in; `control` have no text."""
    chain = [text for script in scripts.values() for text in script if not text.startswith("<0x")]
    texts = ["<unk>", "<bos>", "<eos>", "<end_of_turn>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [text for text in dict.fromkeys([*LETTERS, *chain]) if text not in texts]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 3, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.CONTROL if text in control else gguf.TokenType.NORMAL for text in texts[len(kinds) :]]
    assert len(texts) <= WIDTH

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(8)
    writer.add_head_count_kv(8)
    writer.add_rope_dimension_count(WIDTH // 8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(texts))
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text.replace(" ", "▁") for text in texts])
    writer.add_token_scores([-float(index) for index in range(len(texts))])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)
    output = np.zeros((len(texts), WIDTH), np.float32)
    for first, script in scripts.items():
        for text, following in pairwise([first, *script]):
            output[texts.index(following), texts.index(text)] = 1
    for text, following in product(["D", *COINS], COINS):
        output[texts.index(following), texts.index(text)] = 1
    tensors = {
        "token_embd": np.eye(len(texts), WIDTH, dtype=np.float32),
        "output": output,
        "output_norm": np.ones(WIDTH, np.float32),
        "blk.0.attn_norm": np.ones(WIDTH, np.float32),
        "blk.0.ffn_norm": np.ones(WIDTH, np.float32),
        **{f"blk.0.attn_{name}": np.zeros((WIDTH, WIDTH), np.float32) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": np.zeros((32, WIDTH), np.float32),
        "blk.0.ffn_up": np.zeros((32, WIDTH), np.float32),
        "blk.0.ffn_down": np.zeros((WIDTH, 32), np.float32),
    }
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
