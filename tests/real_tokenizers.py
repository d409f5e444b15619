"""Tokenizers of published model families for tests, rebuilt from the vocabularies that llama.cpp tests its own with.

llama-cpp-python's source distribution holds them as GGUFs (tokens, merges, scores) beside published chat templates.
Together with each family's published splitting expression they make the very tokenizer: upstream's converter
recognises it by the hash of what it makes of a test text. Built once into the user's cache.
"""

from __future__ import annotations

import json
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from ftllm.export import fetch
from ftllm.llama.header import SCALARS, Header, LongArray, read_header
from ftllm.vocabulary import DirectoryVocabulary, from_directory

FORMAT = 2  # raise when what is built changes
CONTROL = 3  # llama_token_type in llama.h
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN2_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# What Qwen3 has after Qwen2's, in order: special ones, then ordinary text, its thought tags among them.
QWEN3_SPECIAL = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN3_ORDINARY = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
MISTRAL_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- ' ' + message['content'] + eos_token -}}
    {%- else -%}
        {{- '[INST] ' + message['content'] + ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True)
class Family:
    """Where a family's parts are in the source distribution, and how they are put together."""

    vocabulary: str
    template: str  # a file there, or Jinja source
    build: Callable[[Any, Path], None]


def tokenizer_files(family: str) -> Path:
    """A directory with the tokenizer files of one of `FAMILIES`; copy what you change."""
    place = _cache() / f"{fetch.runtime_version()}-{FORMAT}"
    if not (place / family).is_dir():
        source = source_files()
        place.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{family}-", dir=place))
        kind = FAMILIES[family]
        kind.build(Vocabulary.read(source / f"ggml-vocab-{kind.vocabulary}.gguf"), scratch)
        template = source / "templates" / kind.template if kind.template.endswith(".jinja") else None
        text = template.read_text(encoding="utf-8") if template else kind.template
        (scratch / "chat_template.jinja").write_text(text, encoding="utf-8")
        _take_place(scratch, place / family)
    return place / family


@cache
def vocabulary(family: str) -> DirectoryVocabulary:
    """One of `FAMILIES` as rendering takes it; read once, for a quarter of a million tokens take seconds."""
    return from_directory(tokenizer_files(family))


def copy_tokenizer(family: str, model: Path) -> None:
    """Put a family's tokenizer files into a model directory."""
    shutil.copytree(tokenizer_files(family), model, dirs_exist_ok=True)


@dataclass(frozen=True)
class Vocabulary:
    """What a vocabulary GGUF holds; `merges` is empty for SentencePiece, `scores` for byte-level BPE."""

    tokens: list[str]
    kinds: list[int]
    merges: list[tuple[str, str]]
    scores: list[float]

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        header = read_header(path)
        merges = [tuple(merge.split(" ", 1)) for merge in _array(header, "merges")]
        tokens, kinds, scores = (_array(header, key) for key in ("tokens", "token_type", "scores"))
        return cls(tokens, kinds, merges, scores)  # type: ignore[arg-type]


def _array(header: Header, key: str) -> list[Any]:
    """A long array of the tokenizer's metadata; empty where there is none."""
    value = header.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, LongArray):
        return []
    data = header.path.read_bytes()
    if value.kind in SCALARS:
        return list(struct.unpack_from(f"<{value.length}{SCALARS[value.kind]}", data, value.offset))
    strings, at = [], value.offset
    for _ in range(value.length):
        begin = at + 8
        at = begin + struct.unpack_from("<Q", data, at)[0]
        strings.append(data[begin:at].decode("utf-8"))
    return strings


def _llama3(vocabulary: Vocabulary, out: Path) -> None:
    control = {text: True for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == CONTROL}
    tokens = [text for text in vocabulary.tokens if text not in control]
    bos = "<|begin_of_text|>"
    _byte_level(tokens, vocabulary.merges, LLAMA3_SPLIT, control, out, bos=bos, whole_words=True)
    _config(out, "PreTrainedTokenizerFast", bos_token=bos, eos_token="<|eot_id|>")


def _qwen2(vocabulary: Vocabulary, out: Path, more: dict[str, bool] | None = None) -> None:
    tokens = vocabulary.tokens[: vocabulary.tokens.index(QWEN2_CONTROL[0])]
    added = {**dict.fromkeys(QWEN2_CONTROL, True), **(more or {})}
    _byte_level(tokens, vocabulary.merges, QWEN2_SPLIT, added, out, compose=True)
    _config(out, "Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>", add_bos_token=False)


def _qwen3(vocabulary: Vocabulary, out: Path) -> None:
    _qwen2(vocabulary, out, {**dict.fromkeys(QWEN3_SPECIAL, True), **dict.fromkeys(QWEN3_ORDINARY, False)})


def _byte_level(
    tokens: list[str],
    merges: list[tuple[str, str]],
    split: str,
    added: dict[str, bool],
    out: Path,
    *,
    bos: str = "",
    whole_words: bool = False,
    compose: bool = False,
) -> None:
    """Write a byte-level BPE `tokenizer.json`; `added` says of each added token whether it is special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {text: index for index, text in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=whole_words))
    if compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for text, special in added.items():
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
    if bos:
        first = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    tokenizer.save(str(out / "tokenizer.json"))


def _mistral(vocabulary: Vocabulary, out: Path) -> None:
    """SentencePiece BPE: `tokenizer.model`, and the `tokenizer.json` that is published beside it."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.kinds, strict=True):
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(vocabulary.tokens)
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    (out / "tokenizer.model").write_bytes(model.SerializeToString())

    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    bpe = models.BPE(
        vocab=ids, merges=list(_merges(ids, vocabulary.scores)), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", ids["<s>"])])
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _config(out, "LlamaTokenizer", add_bos_token=True, add_eos_token=False, legacy=True, **tokens)


def _merges(ids: dict[str, int], scores: list[float]) -> Iterator[tuple[str, str]]:
    """The merges a SentencePiece BPE vocabulary stands for: by the score of the whole, then by rank of the parts."""
    for text in sorted(ids, key=lambda text: -scores[ids[text]]):
        parts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [(left, right) for left, right in parts if left in ids and right in ids]
        yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def _config(out: Path, kind: str, **values: Any) -> None:
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **values}, indent=2))


def _deepseek(vocabulary: Vocabulary, out: Path) -> None:
    """DeepSeek-R1's distillations on Qwen2: its byte-level BPE with DeepSeek's own control tokens."""
    tokens = vocabulary.tokens[: vocabulary.tokens.index(QWEN2_CONTROL[0])]
    ends = "<｜end▁of▁sentence｜>"
    bos = "<｜begin▁of▁sentence｜>"
    added = {ends: True, "<｜User｜>": False, "<｜Assistant｜>": False, bos: True, "<think>": False, "</think>": False}
    _byte_level(tokens, vocabulary.merges, QWEN2_SPLIT, added, out, bos=bos)
    _config(out, "PreTrainedTokenizerFast", bos_token=bos, eos_token=ends, pad_token=ends)


def _harmony(vocabulary: Vocabulary, out: Path) -> None:
    """gpt-oss's control tokens; its vocabulary is not in the source distribution, Qwen2's stands in for it."""
    names = ("startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call")
    tokens = vocabulary.tokens[: vocabulary.tokens.index(QWEN2_CONTROL[0])]
    _byte_level(tokens, vocabulary.merges, QWEN2_SPLIT, {f"<|{name}|>": True for name in names}, out)
    _config(
        out, "PreTrainedTokenizerFast", bos_token="<|startoftext|>", eos_token="<|return|>", pad_token="<|endoftext|>"
    )


def _gemma4(vocabulary: Vocabulary, out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    bpe = models.BPE(vocab=ids, merges=vocabulary.merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    kinds = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    added = [AddedToken(text, special=kind == CONTROL, normalized=False) for text, kind in kinds if kind in (3, 4)]
    tokenizer.add_tokens(added)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _config(out, "PreTrainedTokenizerFast", **tokens)


FAMILIES = {
    "deepseek": Family("qwen2", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", _deepseek),
    "gemma4": Family("gemma-4", "google-gemma-4-31B-it.jinja", _gemma4),
    "gpt-oss": Family("qwen2", "openai-gpt-oss-120b.jinja", _harmony),
    "llama3": Family("llama-bpe", "meta-llama-Llama-3.1-8B-Instruct.jinja", _llama3),
    "mistral": Family("llama-spm", MISTRAL_TEMPLATE, _mistral),
    "qwen2": Family("qwen2", "Qwen-Qwen2.5-7B-Instruct.jinja", _qwen2),
    "qwen3": Family("qwen2", "Qwen-Qwen3-0.6B.jinja", _qwen3),
}


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("ftllm")) / "test-tokenizers"


@cache
def source_files() -> Path:
    """The vocabularies of the source distribution, their test texts and ids, and its templates; fetched once."""
    version = fetch.runtime_version()
    root = _cache()
    place = root / f"source-{version}"
    if not place.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".source-", dir=root))
        prefix = f"llama_cpp_python-{version}/vendor/llama.cpp/models/"
        with tarfile.open(fetch.download(version, scratch), "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix(prefix)
                if member.isreg() and name != member.name and name.endswith((".gguf", ".jinja", ".inp", ".out")):
                    archive.extract(member, scratch, filter="data")
        found = scratch / prefix
        _take_place(found, place)
        shutil.rmtree(scratch)
    return place


def _take_place(made: Path, place: Path) -> None:
    """Rename `made` to `place`, unless another test run was there first."""
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(made)
