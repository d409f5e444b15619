"""The process that makes what lies beside a model's GGUF: `python -m ftllm.export.side`.

A LoRA adapter or a vision projector, by upstream's converter, into a partial file; then the file is read back and
compared with its source. One JSON job on stdin; a `plan` event with the file's size, upon which it waits for a line
(`{"go": true}`) before it writes anything; a `made` event with the file's faults at the end.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.export.plan import padded
from ftllm.export.worker import Channel, add_values, serve

Write = Callable[[Any], None]  # what writes a converter's model
# Gemma 3's vision part: transformers 5 drops a level of its names and adds one in front; upstream's converter knows
# those of transformers 4, which Google's checkpoints have.
SIGLIP = re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(?=(?:embeddings|encoder|post_layernorm|head)\.)")
# Projectors whose first converters took the two matrices of a vision layer's MLP for each other. llama.cpp swaps them
# back where the second reads vectors of the tower's width, which of a square MLP both do (`is_ffn_swapped` in
# tools/mtmd/clip.cpp; the names are clip-impl.h's).
SWAPPING = {
    "mlp", "mlp_norm", "ldp", "ldpv2", "qwen2vl_merger", "qwen2.5vl_merger", "exaone4_5", "adapter", "gemma3",
    "idefics3", "resampler", "minicpmv4_6",
}  # fmt: skip
GEMMA_PROJECTOR = re.compile(r"^(?:model\.)?multi_modal_projector\.")


def run(job: dict[str, Any], channel: Channel) -> None:
    """Make one file.

    Args:
        job: `what` (`adapter` or `projector`), `converter` (directory), `base`, `adapter` (for the one), `model` (for
            the other: a GGUF of the text part), `name`, `kind` (F32, F16 or BF16), `path` to write to, `values`
            (metadata to add), `check` (compare it with its source).
    """
    root = Path(job["converter"])
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    started = time.monotonic()
    path = Path(job["path"])

    def write(model: Any) -> None:
        """Say how large the file will be, and write it when told to."""
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
        if job["what"] == "projector":
            require_no_swap(model.gguf_writer)
        add_values(model.gguf_writer, job["values"])
        channel.send("plan", bytes=size_of(model.gguf_writer))
        channel.receive()
        channel.partials = [path]
        model.gguf_writer.write_header_to_file(path=path)
        model.gguf_writer.write_kv_data_to_file()
        model.gguf_writer.write_tensors_to_file(progress=False)
        model.gguf_writer.close()

    faults = (write_adapter if job["what"] == "adapter" else write_projector)(job, path, write)
    channel.partials = []
    channel.send("made", faults=faults, seconds=time.monotonic() - started)


def write_adapter(job: dict[str, Any], path: Path, write: Write) -> list[str]:
    """A LoRA GGUF, its scales folded in: upstream's own program takes `lora_alpha / rank` for every layer."""
    from ftllm.export import lean

    lean.skip_documentation()
    import gguf
    import torch
    from conversion import LazyTorchTensor
    from convert_lora_to_gguf import LoraTorchTensor  # type: ignore[import-not-found]
    from safetensors import safe_open

    from ftllm.export import convert
    from ftllm.export.lora import read_adapter

    base = Path(job["base"])
    adapter = read_adapter(Path(job["adapter"]))
    whole = convert.open_checkpoint(base, adapter, job["name"])  # refuses what does not belong to this base
    alpha = float(adapter.config.get("lora_alpha", 8))
    weights: Any = safe_open(adapter.weights, framework="pt")
    pairs = {name: next(p for p in adapter.pairs if p.module == module) for name, module in whole.merged.items()}
    parent: Any = type(whole.model).__mro__[1]

    class LoraModel(parent):  # type: ignore[misc]
        model_arch = parent.model_arch

        def set_vocab(self) -> None:
            pass

        def set_type(self) -> None:
            self.gguf_writer.add_type(gguf.GGUFType.ADAPTER)
            self.gguf_writer.add_string(gguf.Keys.Adapter.TYPE, "lora")

        def set_gguf_parameters(self) -> None:
            self.gguf_writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)

        def generate_extra_tensors(self) -> list[Any]:
            return []

        def get_tensors(self) -> Iterator[tuple[str, Any]]:
            for name, pair in pairs.items():
                a, b = (weights.get_tensor(part).float() for part in (pair.a, pair.b))
                b = b * (pair.scale * pair.rank / alpha)  # llama.cpp multiplies by alpha / rank
                yield name, LoraTorchTensor(LazyTorchTensor.from_eager(a), LazyTorchTensor.from_eager(b))

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterator[tuple[str, Any]]:
            for made, change in super().modify_tensors(data_torch, name, bid):
                a, b = change.get_lora_A_B()
                yield f"{made}.lora_a", a
                yield f"{made}.lora_b", b

    with torch.inference_mode():
        model = LoraModel(base, getattr(gguf.LlamaFileType, FLOATS[job["kind"]]), path, model_name=job["name"])
        try:
            write(model)
        except (NotImplementedError, ValueError) as error:
            if isinstance(error, ValueError) and "experts" not in str(error):  # it wants all of a layer's or none
                raise
            raise UserError(
                "upstream's converter cannot express this adapter's layers as a LoRA of their own",
                "export the merged model instead: leave --adapter-only out",
            ) from None
    if not job["check"]:
        return []
    from ftllm.export.adapter_check import check_adapter

    made = {name: whole.gguf_name(name) for name in pairs}
    modules = {known: pairs[name].module for name, known in made.items() if known is not None}
    parts = [pairs[name].module for name, known in made.items() if known is None]
    experts = [module for module in parts if ".experts." in module]
    return check_adapter(path, base, Path(job["adapter"]), modules, experts)


FLOATS = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def write_projector(job: dict[str, Any], path: Path, write: Write) -> list[str]:
    """A model's vision part as an mmproj GGUF; its tensors under the names upstream's converter knows."""
    from ftllm.export import lean

    lean.skip_documentation()
    import gguf
    import torch

    from ftllm.export import convert

    base = Path(job["base"])
    known: Any = convert.class_of(base, vision=True)
    rename = old_name if known.__name__ == "Gemma3VisionModel" else str

    class Projector(known):  # type: ignore[misc]
        model_arch = known.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
            indexed = super().index_tensors(remote_hf_model_id=remote_hf_model_id)
            return {rename(name): make for name, make in indexed.items()}

        @classmethod
        def filter_tensors(cls, item: tuple[str, Callable[[], Any]]) -> Any:
            return super().filter_tensors((rename(item[0]), item[1]))

    with torch.inference_mode(), convert.reading(base):
        model = Projector(base, getattr(gguf.LlamaFileType, FLOATS[job["kind"]]), path, model_name=job["name"])
        write(model)
    if not job["check"]:
        return []
    return missing_vision_tensors(path, list(model.model_tensors)) or unloadable(path, Path(job["model"]))


def require_no_swap(writer: Any) -> None:
    """Refuse a vision tower that llama.cpp would compute wrongly, without a word.

    Raises:
        UserError: the MLP in its layers is square, and of a kind of projector that llama.cpp mends (`SWAPPING`).
    """
    values = {key: value.value for key, value in writer.kv_data[0].items()}
    kind = str(values.get("clip.projector_type") or values.get("clip.vision.projector_type"))
    width = values.get("clip.vision.embedding_length")
    for name, info in writer.tensors[0].items():
        if kind in SWAPPING and re.fullmatch(r"v\.blk\.\d+\.ffn_down\.weight", name) and info.shape[-1] == width:
            raise UserError(
                f"its vision layers have square MLPs ({width} to {width}), whose two matrices llama.cpp takes for each"
                f" other in projectors of the kind {kind}: it would see something else, without a word",
                "leave --mmproj out; llama.cpp cannot run this vision part as it is",
            )


def unloadable(path: Path, beside: Path) -> list[str]:
    """A projector must load in llama.cpp beside the model it was made with."""
    from ftllm.llama.model import Model

    with Model.load(beside, gpu_layers=0) as model:
        try:
            model.add_projector(path)
        except UserError as error:
            return [error.message]
    return []


def old_name(name: str) -> str:
    """A tensor of Gemma 3's vision part under its name in transformers 4; other names as they are."""
    return GEMMA_PROJECTOR.sub("multi_modal_projector.", SIGLIP.sub("vision_tower.vision_model.", name))


def missing_vision_tensors(path: Path, indexed: list[str]) -> list[str]:
    """A projector must hold every tensor of the vision part, once, and finite."""
    import numpy as np

    from ftllm.export import blocks
    from ftllm.llama.header import read_header

    header = read_header(path)
    wanted = [name for name in indexed if not name.startswith("language_model") and ".head." not in name]
    if len(header.tensors) < len(wanted):
        return [f"it holds {len(header.tensors)} tensors of the vision part's {len(wanted)}"]
    for info in header.tensors:
        data = np.fromfile(path, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        if not np.isfinite(blocks.dequantize(blocks.NUMBERS[info.type], data, info.shape[0])).all():
            return [f"{info.name} holds NaN or infinite values"]
    return []


def size_of(writer: Any) -> int:
    """Bytes of the file a writer would write."""
    with tempfile.TemporaryDirectory(prefix="ftllm-plan-") as directory:
        whole = copy(writer)  # one that has opened a file writes to no other
        whole.write_header_to_file(path=Path(directory) / "header.gguf")
        whole.write_kv_data_to_file()
        whole.write_ti_data_to_file()
        header = int(whole.fout[0].tell())
        whole.close()
    return padded(header) + sum(padded(info.nbytes) for info in writer.tensors[0].values())


if __name__ == "__main__":
    serve(run)
