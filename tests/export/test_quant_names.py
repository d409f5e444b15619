"""What `--quant` takes: types, groups, aliases and the names of files made with an importance matrix."""

from __future__ import annotations

import pytest

from ftllm.errors import UserError
from ftllm.export.quants import DEFAULT, GROUPS, Wanted, parse


def test_each_file_once_in_the_order_given() -> None:
    assert parse(None) == tuple(Wanted(name) for name in DEFAULT)
    found = parse(["q4_k_m, Q8_0", "Q4_K", "i1-iq2_m", "Q4_K_M,i1-Q4_K_M", "I1-Q4_K"])
    assert [item.label for item in found] == ["Q4_K_M", "Q8_0", "i1-IQ2_M", "i1-Q4_K_M"]


def test_a_name_of_the_group_is_the_same_file_as_in_the_group() -> None:
    assert set(parse(["i1"])) == {Wanted(name, i1=True) for name in GROUPS["I1"]}
    for item in parse(["i1"]):
        assert parse([item.label]) == (item,)
    assert len(parse(["i1", "i1-IQ2_M", "IQ2_M"])) == len(GROUPS["I1"]) + 1  # IQ2_M is not called i1-IQ2_M


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        ("i1-IQ2M", "'I1-IQ2M' is not a quantization type", "did you mean i1-IQ2_M?"),
        ("i1-Q8_0", "there is no i1-Q8_0", "ask for Q8_0"),
        ("Q9_X", "'Q9_X' is not a quantization type", "types: "),
        ("i1-all", "'I1-ALL' is not a quantization type", "types: "),
        (" , ", "names no type", "--quant Q4_K_M"),
    ],
)
def test_other_names_are_refused(given: str, says: str, hint: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        parse([given])
    assert hint in refused.value.hint
