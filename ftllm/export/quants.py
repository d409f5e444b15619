"""Names of GGUF file types, as `--quant` and `--tensor-type` take them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ftllm.errors import UserError
from ftllm.llama.types import FILE_TYPES, TENSOR_TYPES

# Their mixtures hold tensors that llama.cpp quantizes only with an importance matrix.
NEED_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S"}
# An importance matrix makes no difference to them (`quantize_q8_0` and the conversions in ggml-quants.c).
NO_IMATRIX = {"F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0"}
# Formats that models are published in, not ones to quantize any model to.
NOT_OFFERED = {"NVFP4"}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
DEFAULT = ("Q4_K_M",)
I1 = "I1-"
OFFERED = tuple(name for name in FILE_TYPES if name not in NOT_OFFERED)
# What people publish as a model's static types, and as those with an importance matrix.
GROUPS = {
    "ALL": ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",
            "F16"),
    "I1": ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS", "IQ3_XS", "Q3_K_S",
           "IQ3_S", "IQ3_M", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4_K_S", "Q4_K_M", "Q4_1", "Q5_K_S",
           "Q5_K_M", "Q6_K"),
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A file asked for; `i1` where it is one of the group of that name, always made with an importance matrix."""

    type: str
    i1: bool = False

    @property
    def label(self) -> str:
        """What tells it from the other files of the same export, and ends its name: `Q4_K_M`, `i1-Q4_K_M`."""
        return f"i1-{self.type}" if self.i1 else self.type

    @property
    def needs_importance(self) -> bool:
        """Whether it is never made without an importance matrix."""
        return self.i1 or self.type in NEED_IMATRIX

    def takes_importance(self, mode: str) -> bool:
        """Whether it is made with an importance matrix when `--imatrix` is `mode`."""
        if self.needs_importance:
            return True
        return mode != "none" and self.type not in NO_IMATRIX


def parse(values: Sequence[str] | None) -> tuple[Wanted, ...]:
    """`["Q4_K_M,q8_0", "i1", "i1-IQ2_M"]` -> the files, each once, in the order given.

    Raises:
        UserError: an unknown type, or a value without any.
    """
    names = [part.strip().upper() for value in values or () for part in value.split(",") if part.strip()]
    if values and not names:
        raise UserError("--quant names no type", "such as --quant Q4_K_M,Q8_0")
    chosen: dict[Wanted, None] = {}
    for given in names or DEFAULT:
        if given in GROUPS:
            chosen |= dict.fromkeys(Wanted(name, given == "I1") for name in GROUPS[given])
        else:
            chosen[_wanted(given)] = None
    return tuple(chosen)


def _wanted(given: str) -> Wanted:
    """A type by its name or, as files are called that an importance matrix is always used for, `I1-` and its name."""
    plain = given.removeprefix(I1)
    name = ALIASES.get(plain, plain)
    if name not in OFFERED:
        near = difflib.get_close_matches(name, OFFERED, n=1, cutoff=0.65)  # Q9_X is near to nothing
        prefix = "i1-" if given != plain else ""
        hint = f"did you mean {prefix}{near[0]}?" if near else "types: " + ", ".join((*OFFERED, "all", "i1"))
        raise UserError(f"{given!r} is not a quantization type", hint)
    if given != plain and name in NO_IMATRIX:
        raise UserError(
            f"{name} is the same with an importance matrix and without, so there is no i1-{name}", f"ask for {name}"
        )
    return Wanted(name, given != plain)


def parse_tensor_types(values: Sequence[str] | None) -> tuple[tuple[str, int], ...]:
    """`["ffn_down=q6_k"]` -> `(("ffn_down", 14),)`: expressions, in lower case as for llama-quantize, and types.

    Raises:
        UserError: no `=`, an unknown type, or a broken expression.
    """
    numbers = {kind.name: number for number, kind in TENSOR_TYPES.items()}
    pairs = []
    for value in values or ():
        expression, equals, name = value.rpartition("=")
        if not equals or not expression:
            raise UserError(f"{value!r} is not REGEX=TYPE", "such as --tensor-type 'ffn_down=Q6_K'")
        if name.upper() not in numbers:
            near = difflib.get_close_matches(name.upper(), numbers, n=1)
            hint = f"did you mean {near[0]}?" if near else "types: " + ", ".join(numbers)
            raise UserError(f"{name!r} is not a tensor type", hint)
        try:
            re.compile(expression)
        except re.error as error:
            raise UserError(f"{expression!r} is not a regular expression: {error}", "check its brackets") from None
        pairs.append((expression.lower(), numbers[name.upper()]))
    return tuple(pairs)


def parse_size(text: str) -> int:
    """`5G`, `800M` -> bytes, decimal as llama-gguf-split counts.

    Raises:
        UserError: something else.
    """
    match = re.fullmatch(r"(\d+)\s*([MG])B?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise UserError(f"{text!r} is not a size", "such as 5G or 800M")
    return int(match[1]) * (10**9 if match[2].upper() == "G" else 10**6)
