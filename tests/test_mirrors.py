"""4-bit copies and their originals, against the list that Unsloth itself keeps, read and not imported."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ftllm.mirrors import is_four_bit, original


def test_names() -> None:
    assert original("unsloth/gemma-3-27b-it-unsloth-bnb-4bit") == "unsloth/gemma-3-27b-it"
    assert original("unsloth/gemma-3-4b-it-bnb-4bit") == "unsloth/gemma-3-4b-it"
    assert original("unsloth/codellama-34b-bnb-4bit") == "codellama/CodeLlama-34b-hf"
    assert original("google/gemma-3-4b-it") == "google/gemma-3-4b-it"
    assert not is_four_bit("someone/bnb-4bit-study")


def listed() -> dict[str, list[str]]:
    """Unsloth's 4-bit names and the 16-bit ones it has for each."""
    spec = find_spec("unsloth")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "models" / "mapper.py").read_text(encoding="utf-8")
    tables = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__INT_TO_FLOAT_MAPPER"
    ]
    table: dict[str, Any] = tables[0]
    return {name: list(values["16"] if isinstance(values, dict) else values) for name, values in table.items()}


@pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed")
def test_every_copy_that_unsloth_swaps_in_is_mapped_back() -> None:
    copies = {name: originals for name, originals in listed().items() if is_four_bit(name)}
    assert len(copies) > 200
    for name, originals in copies.items():
        assert original(name) in originals, name
