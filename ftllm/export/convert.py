"""Upstream's converter, driven tensor by tensor. Only the worker imports this: `conversion` must be on its path.

`ModelBase` indexes a checkpoint into lazy tensors, transforms them into `gguf_writer.tensors`, still lazy, and fills in
the metadata. Here its `index_tensors` is wrapped so that every tensor an adapter changes becomes `W + scale * B @ A`
in float32, and the quantization at the end of `prepare_tensors` is only noted down: what type upstream's 16-bit file
would have, and the float tensor to take it from.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import gguf
import torch
from conversion import LazyTorchTensor, ModelBase, ModelType, get_model_architecture, get_model_class
from safetensors import safe_open

from ftllm.errors import UserError
from ftllm.export.lean import without_compiler
from ftllm.export.lora import ELSEWHERE, Adapter, Pair
from ftllm.export.pieces import read_at_once
from ftllm.export.rows import Rows, as_float32, by_rows, changed, leaf, rows_of


@dataclass
class Conversion:
    """A model ready to be streamed.

    Args:
        kinds: the type each tensor has in upstream's 16-bit file, by GGUF name, in upstream's order.
        shapes: in numpy's order.
        merged: adapter modules by the name of the checkpoint tensor they change.
    """

    model: Any
    kinds: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    merged: dict[str, str]
    sources: dict[str, Any] = field(repr=False)
    float_kind: str = "BF16"

    def rows(self, name: str) -> Rows:
        """How to read the tensor's values by rows. May be called once for each: what was computed whole is not kept."""
        return rows_of(self.sources.pop(name), name, self.shapes[name])

    def largest_whole(self) -> int:
        """Values of the largest tensor that cannot be computed by rows."""
        whole = (name for name, source in self.sources.items() if not by_rows(source, self.shapes[name]))
        return max((prod(self.shapes[name]) for name in whole), default=0)

    @property
    def names(self) -> dict[str, str]:
        """The GGUF's names by the checkpoint's, of tensors that are not made of several."""
        known = ((name, self.gguf_name(name)) for name in self.model.model_tensors)
        return {name: found for name, found in known if found is not None}

    def gguf_name(self, name: str) -> str | None:
        """What the converter calls a checkpoint's tensor; None where it becomes part of another one."""
        found = self.model.tensor_map.get_name(key=name, try_suffixes=(".weight", ".bias"))
        return str(found) if found in self.shapes else None


def open_checkpoint(directory: Path, adapter: Adapter | None, name: str) -> Conversion:
    """Index `directory`, lay the adapter over it, and prepare every tensor and all metadata, reading no weights yet.

    Raises:
        UserError: an architecture llama.cpp does not know, or an adapter that does not fit this base.
    """
    # Every thread of the pass computes its own rows; until then a second one would mostly spin in waiting for its turn
    # on a core that the verifier uses: half of the time.
    torch.set_num_threads(1)
    with torch.inference_mode(), reading(directory):
        return _open(directory, adapter, name)


def _open(directory: Path, adapter: Adapter | None, name: str) -> Conversion:
    model_class = class_of(directory)
    merged: dict[str, str] = {}
    merging = _merging(model_class, adapter, directory, merged)
    kind = _float_kind(directory)
    model = merging(directory, kind, directory / "unused.gguf", model_name=name)
    sources = _prepare(model)
    infos = model.gguf_writer.tensors[0]
    return Conversion(
        model,
        {name: int(info.dtype) for name, info in infos.items()},
        {name: tuple(int(n) for n in info.shape) for name, info in infos.items()},
        merged,
        sources,
        "BF16" if kind == gguf.LlamaFileType.MOSTLY_BF16 else "F16",
    )


def class_of(directory: Path, vision: bool = False) -> Any:
    """Upstream's class for a checkpoint's text part, or its vision part.

    Raises:
        UserError: there is none.
    """
    architecture = get_model_architecture(
        ModelBase.load_hparams(directory, False), ModelType.MMPROJ if vision else ModelType.TEXT
    )
    try:
        return get_model_class(architecture, mmproj=vision)
    except NotImplementedError:
        part, hint = ("the vision part of ", "leave --mmproj out") if vision else ("", "is it a text model?")
        raise UserError(f"llama.cpp's converter does not know {part}{architecture}", hint) from None


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Turn what upstream's converter stumbles over in a checkpoint into one line; the rest goes to stderr."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        traceback.print_exc()
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"llama.cpp's converter cannot read {directory}: {said[:200]}",
            "is the checkpoint complete, as it was published? --verbose tells more",
        ) from None


def _prepare(model: Any) -> dict[str, Any]:
    """Run upstream's `prepare_tensors` and `prepare_metadata`; the float tensor behind each GGUF tensor, by name."""
    taken: dict[int, tuple[Any, Any]] = {}
    quantize = gguf.quants.quantize
    chunked = gguf.LazyChunkedTensor.quantize

    def noting(data: Any, kind: Any) -> Any:
        result = quantize(data, kind)
        taken[id(result)] = (result, data)
        return result

    def noting_chunked(self: Any, kind: Any) -> Any:
        result = chunked(self, kind)
        taken[id(result)] = (result, self)
        return result

    gguf.quants.quantize, gguf.LazyChunkedTensor.quantize = noting, noting_chunked
    try:
        with without_compiler():
            model.prepare_tensors()
    finally:
        gguf.quants.quantize, gguf.LazyChunkedTensor.quantize = quantize, chunked
    model.prepare_metadata(vocab_only=False)
    sources = {}
    for name, info in model.gguf_writer.tensors[0].items():
        sources[name] = taken[id(info.tensor)][1] if id(info.tensor) in taken else info.tensor
        info.tensor = None
    return sources


def _merging(model_class: Any, adapter: Adapter | None, directory: Path, merged: dict[str, str]) -> Any:
    """`model_class` with an `index_tensors` whose tensors have the adapter's changes added."""

    def index_tensors(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
        indexed = model_class.index_tensors(self, remote_hf_model_id=remote_hf_model_id)
        tensors: dict[str, Callable[[], Any]] = {name: _leaf(make) for name, make in indexed.items()}
        if adapter is not None:
            weights: Any = safe_open(adapter.weights, framework="pt")
            for pair in adapter.pairs:
                name = _tensor_of(pair, model_class, tensors, directory)
                _require_finite(pair, weights, adapter.weights)
                tensors[name] = _changed(tensors[name], pair, weights, adapter.transposed, directory, name)
                merged[name] = pair.module
            for module, copy in adapter.copies.items():
                _require_same(module, weights.get_tensor(copy), _original(module, model_class, indexed), directory)
        return tensors

    own = {"model_arch": model_class.model_arch, "index_tensors": index_tensors}
    pieces = getattr(model_class, "_create_vocab_sentencepiece", None)
    if pieces is not None:  # Gemma's asks for its 262k pieces twice
        own["_create_vocab_sentencepiece"] = cache(read_at_once(pieces))
    return type(model_class.__name__, (model_class,), own)


def _tensor_of(pair: Pair, model_class: Any, tensors: dict[str, Callable[[], Any]], directory: Path) -> str:
    """The checkpoint tensor that a pair changes, after the converter's own renames and filters."""
    wanted = pair.module + ".weight"
    renamed = model_class.filter_tensors((wanted, lambda: None))
    if renamed is None:
        raise UserError(
            f"the adapter changes {pair.module}, which is no part of the text model", "train language layers only"
        )
    if renamed[0] not in tensors and pair.module.rpartition(".")[2] == "lm_head":
        raise UserError(
            f"the adapter changes lm_head, whose weights {directory.name} shares with its embedding: a GGUF holds them"
            " once, and merged there they would change what goes in as well",
            "train without lm_head in target_modules",
        )
    if renamed[0] not in tensors:
        near = difflib.get_close_matches(renamed[0], tensors, n=1)
        closest = f" (closest: {near[0]})" if near else ""
        raise UserError(
            f"the adapter changes {pair.module}, which {directory.name} does not have{closest}", "is it the right base?"
        )
    return str(renamed[0])


def _require_finite(pair: Pair, weights: Any, path: Path) -> None:
    for name in (pair.a, pair.b):
        if not torch.isfinite(weights.get_tensor(name)).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values", "training diverged; train it again")


def _original(module: str, model_class: Any, indexed: dict[str, Callable[[], Any]]) -> torch.Tensor | None:
    """The base's own weights of a layer; an output layer it does not have shares its embedding's."""
    renamed = model_class.filter_tensors((module + ".weight", lambda: None))
    name = renamed[0] if renamed is not None else None
    if name not in indexed and module.rpartition(".")[2] == "lm_head":
        name = next((known for known in indexed if known.endswith("embed_tokens.weight")), None)
    return LazyTorchTensor.to_eager(indexed[name]()) if name in indexed else None


def _require_same(module: str, copy: torch.Tensor, weight: torch.Tensor | None, directory: Path) -> None:
    """Refuse a whole layer in an adapter that is not the base's: it was resized, or trained itself."""
    if weight is None or copy.shape != weight.shape or not torch.equal(copy.float(), weight.float()):
        kind = "resized or trained whole (modules_to_save, save_embedding_layers)"
        raise UserError(
            f"the adapter holds a {module} of its own, which is not {directory.name}'s: one that was {kind}"
            " cannot be merged",
            f"is it the right base? Else {ELSEWHERE}",
        )


def _changed(
    base: Callable[[], Any], pair: Pair, weights: Any, transposed: bool, directory: Path, name: str
) -> Callable[[], Any]:
    shape = tuple(base().shape)
    expected = pair.shape[::-1] if transposed else pair.shape
    if shape != expected:
        raise UserError(
            f"the adapter's {pair.module} is {list(expected)}, but {name} of {directory.name} is {list(shape)}",
            "it was trained on another base; name it with --base",
        )

    def factors() -> tuple[torch.Tensor, torch.Tensor]:
        a, b = weights.get_tensor(pair.a).float(), weights.get_tensor(pair.b).float()
        return (a.T, b.T) if transposed else (b, a)

    def merge(w: torch.Tensor) -> torch.Tensor:
        left, right = factors()
        return torch.addmm(w.float(), left, right, alpha=pair.scale)

    kept = cache(factors)

    def merge_rows(w: torch.Tensor, rows: slice) -> torch.Tensor:
        left, right = kept()
        return as_float32(w).addmm_(left[rows], right, alpha=pair.scale)

    return lambda: changed(base(), merge, merge_rows)


def _leaf(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: leaf(make())


def _float_kind(directory: Path) -> Any:
    """The 16-bit type upstream's `--outtype auto` takes: that of the first matrix in the checkpoint, F16 for others."""
    for path in sorted(directory.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                view = shard.get_slice(name)
                if len(view.get_shape()) >= 2:
                    bf16 = view.get_dtype() == "BF16"
                    return gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.MOSTLY_F16
    return gguf.LlamaFileType.MOSTLY_F16
