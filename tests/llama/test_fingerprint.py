"""A model's fingerprint: the same for the same weights, another wherever they differ."""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny_gemma import write_gemma

from ftllm.llama.fingerprint import HEAD, LENGTH, fingerprint


def test_same_weights_have_the_same_whatever_their_name(gemma_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(gemma_path, tmp_path / "other name.gguf"))
    assert fingerprint(copy) == fingerprint(gemma_path)
    assert len(fingerprint(copy)) == LENGTH
    assert int(fingerprint(copy), 16)


def test_other_weights_have_another(gemma_path: Path, tmp_path: Path) -> None:
    other = write_gemma(tmp_path / "other-F32.gguf", seed=1)
    assert other.stat().st_size == gemma_path.stat().st_size
    assert fingerprint(other) != fingerprint(gemma_path)


def test_every_region_and_the_size_count(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    size = HEAD + (16 << 20)
    path.write_bytes(bytes(size))
    seen = {fingerprint(path)}
    for place in (0, HEAD - 1, size - 1, *range(HEAD, size, 1 << 20)):
        data = bytearray(size)
        data[place : place + (1 << 19)] = b"\1" * min(1 << 19, size - place)
        path.write_bytes(data)
        seen.add(fingerprint(path))
    assert len(seen) == 1 + 3 + 16
    path.write_bytes(bytes(size + 1))
    assert fingerprint(path) not in seen


def test_all_shards_count(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    before = fingerprint(first)
    second.write_bytes(b"c")
    assert fingerprint(first) != before


def test_adapters_and_their_scales_make_another_model(tmp_path: Path) -> None:
    model, one, two = (tmp_path / f"{name}.gguf" for name in ("model", "one", "two"))
    for path in (model, one, two):
        path.write_bytes(path.name.encode())
    both = fingerprint(model, [(one, 1.0), (two, 0.5)])
    assert both == fingerprint(model, [(two, 0.5), (one, 1.0)])
    others = [fingerprint(model), fingerprint(model, [(one, 1.0)]), fingerprint(model, [(one, 0.5), (two, 1.0)])]
    assert len({both, *others}) == 4
