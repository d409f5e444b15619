"""A tiny projector with random weights in Gemma 3's shape (SigLIP), for the tiny Gemma, and images to look at."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import gguf
import numpy as np

IMAGE, PATCH, MERGE, WIDTH, INNER, HEADS, LAYERS = 32, 8, 2, 64, 128, 2, 1
POSITIONS = (IMAGE // PATCH // MERGE) ** 2  # that an image takes


def write_projector(path: Path, *, projection: int = 256, seed: int = 0) -> Path:
    """An mmproj in F32 that makes embeddings of width `projection`."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    for name, value in {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "projection_dim": projection,
        "projector.scale_factor": MERGE,
    }.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    generator = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        values = generator.normal(0, np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1, shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    add("v.patch_embd.bias", WIDTH)
    add("v.position_embd.weight", (IMAGE // PATCH) ** 2, WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"v.blk.{layer}.{name}.weight", WIDTH, WIDTH)
            add(f"v.blk.{layer}.{name}.bias", WIDTH)
        for name in ("ln1", "ln2"):
            writer.add_tensor(f"v.blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
            writer.add_tensor(f"v.blk.{layer}.{name}.bias", np.zeros(WIDTH, np.float32))
        add(f"v.blk.{layer}.ffn_up.weight", INNER, WIDTH)
        add(f"v.blk.{layer}.ffn_up.bias", INNER)
        add(f"v.blk.{layer}.ffn_down.weight", WIDTH, INNER)
        add(f"v.blk.{layer}.ffn_down.bias", WIDTH)
    writer.add_tensor("v.post_ln.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("v.post_ln.bias", np.zeros(WIDTH, np.float32))
    add("mm.input_projection.weight", WIDTH, projection)
    writer.add_tensor("mm.soft_emb_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_png(path: Path, colour: tuple[int, int, int], size: int = 40) -> Path:
    """A square of one colour with a white line across it."""
    rows = b"".join(
        b"\0" + bytes((255, 255, 255) if row == size // 3 else colour) * size  # 0: no filter
        for row in range(size)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path
