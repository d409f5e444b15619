"""A model's fingerprint follows its weights, not its file."""

from __future__ import annotations

import shutil
from pathlib import Path

import tiny_gemma

from ftllm.llama.header import read_header
from ftllm.llama.identity import fingerprint


def test_the_name_and_the_place_do_not_matter(gemma_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other name.gguf"
    shutil.copyfile(gemma_path, copy)
    assert fingerprint(read_header(copy)) == fingerprint(read_header(gemma_path))
    assert len(fingerprint(read_header(copy))) == 64


def test_other_weights_have_another(gemma_path: Path, tmp_path: Path) -> None:
    other = tiny_gemma.write_gemma(tmp_path / "seed.gguf", seed=1)
    assert fingerprint(read_header(other)) != fingerprint(read_header(gemma_path))


def test_one_changed_tensor_is_enough(gemma_path: Path, tmp_path: Path) -> None:
    known = {fingerprint(read_header(gemma_path))}
    header = read_header(gemma_path)
    for tensor in header.tensors:
        changed = tmp_path / "changed.gguf"
        shutil.copyfile(gemma_path, changed)
        with changed.open("r+b") as file:
            file.seek(tensor.offset + tensor.nbytes // 2)
            file.write(b"\x01\x02\x03\x04")
        known.add(fingerprint(read_header(changed)))
    assert len(known) == 1 + len(header.tensors)
