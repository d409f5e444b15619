"""A SentencePiece BPE tokenizer with byte fallback and Gemma's control tokens, and Hugging Face's files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VOCABULARY = 2048
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
TURNS = ("<start_of_turn>", "<end_of_turn>")
NEWLINES = ("\n", "\n\n")

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set opening = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message['role'] not in ('user', 'assistant') -%}
        {{- raise_exception('nano knows the roles system (first), user and assistant') -}}
    {%- endif -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('user and assistant take turns, and the user begins') -}}
    {%- endif -%}
    {%- set speaker = 'model' if message['role'] == 'assistant' else 'user' -%}
    {%- set text = (opening if loop.first else '') + message['content'] | trim -%}
    {{- '<start_of_turn>' + speaker + '\\n' + text + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""


def train_sentencepiece(lines: Iterable[str], folder: Path, vocabulary: int = VOCABULARY) -> None:
    """Write `tokenizer.model`: BPE, digits apart, spaces kept as they are, unknown characters as bytes."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        required_chars="".join(map(chr, range(33, 127))),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=[*TURNS, *NEWLINES],
        num_threads=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()


def write_tokenizer_files(folder: Path) -> None:
    """Write `tokenizer.json`, its configuration and the chat template, from `tokenizer.model`.

    The fast tokenizer is the same BPE: a merge's rank is the rank of the piece it makes.
    """
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    processor = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    whole = {*SPECIAL.values(), *TURNS, *NEWLINES}
    merges = []
    for piece in pieces:
        if piece in whole or processor.is_byte(vocabulary[piece]):
            continue
        parts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        parts = [
            (left, right)
            for left, right in parts
            if left in vocabulary and right in vocabulary and not {left, right} & whole
        ]
        merges += sorted(parts, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (*SPECIAL.values(), *TURNS)]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in NEWLINES])
    tokenizer.post_processor = bos_processor(vocabulary["<bos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {}
    for token in (*SPECIAL.values(), *TURNS, *NEWLINES):
        stripped = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        added[str(vocabulary[token])] = {"content": token, **stripped, "special": token not in NEWLINES}
    write(folder / "tokenizer_config.json", {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "sp_model_kwargs": {},
        "use_default_system_prompt": False,
        **SPECIAL,
    })  # fmt: skip
    write(folder / "special_tokens_map.json", SPECIAL)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def bos_processor(bos: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)])


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
