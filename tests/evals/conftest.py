"""GGUFs whose every reply is known: the next token depends on the last one only, by a chain the test writes down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

N_EMBD = 512
CONTROL = ["<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
WORDS = ["<think>", "</think>", "2+2 is 4", "one", "two", "three", "four", "4", "5", "user", "model", "hello", "\n"]
N_VOCAB = len(CONTROL) + 256 + len(WORDS)
LOGIT = 8.0  # of the token the chain goes to; 0 of all others
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ON_CHAIN = math.log(math.exp(LOGIT) + N_VOCAB - 1) - LOGIT  # nats of the token the chain goes to
OFF_CHAIN = ON_CHAIN + LOGIT  # nats of any other token


def write_chain(path: Path, chain: Mapping[str, str], template: str = TEMPLATE) -> Path:
    """A one-layer Llama in F32 without attention or MLP: one-hot embeddings, and `chain` as the output matrix."""
    texts = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    numbers = {text: number for number, text in enumerate(texts)}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_feed_forward_length(256)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-9)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(number) for number in range(len(texts))])
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 4, *[gguf.TokenType.BYTE] * 256]
    writer.add_token_types([int(kind) for kind in kinds + [gguf.TokenType.USER_DEFINED] * len(WORDS)])
    writer.add_bos_token_id(numbers["<bos>"])
    writer.add_eos_token_id(numbers["<eos>"])
    writer.add_unk_token_id(numbers["<unk>"])
    writer.add_eot_token_id(numbers["<end_of_turn>"])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)
    embedding = np.eye(N_VOCAB, N_EMBD, dtype=np.float32)
    output = np.zeros((N_VOCAB, N_EMBD), dtype=np.float32)
    for before, after in chain.items():
        # The norm makes a one-hot vector's 1 the square root of its width.
        output[numbers[after], numbers[before]] = LOGIT / math.sqrt(N_EMBD)
    ones = np.ones(N_EMBD, dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", ones)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((N_EMBD, N_EMBD), dtype=np.float32))
    for name, shape in (("ffn_gate", (256, N_EMBD)), ("ffn_up", (256, N_EMBD)), ("ffn_down", (N_EMBD, 256))):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


THINKER = {"\n": "<think>", "<think>": "2+2 is 4", "2+2 is 4": "</think>", "</think>": "4", "4": "<end_of_turn>"}
PLAIN = {"\n": "5", "5": "<end_of_turn>"}
LOOPER = {"\n": "<think>", "<think>": "one", "one": "two", "two": "three", "three": "four", "four": "one"}


@pytest.fixture(scope="session")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`thinker` thinks and answers 4; `plain` answers 5; `looper` never ends its thought."""
    root = tmp_path_factory.mktemp("chains")
    chains = {"thinker": THINKER, "plain": PLAIN, "looper": LOOPER}
    return {name: write_chain(root / f"{name}.gguf", chain) for name, chain in chains.items()}
