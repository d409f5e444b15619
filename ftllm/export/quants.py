"""Names of GGUF file types, as `--quant` takes them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ftllm.errors import UserError
from ftllm.llama.types import FILE_TYPES

# Their mixtures hold tensors that llama.cpp quantizes only with an importance matrix.
NEED_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S"}
# Formats that models are published in, not ones to quantize any model to.
NOT_OFFERED = {"NVFP4"}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
DEFAULT = ("Q4_K_M",)
OFFERED = tuple(name for name in FILE_TYPES if name not in NEED_IMATRIX | NOT_OFFERED)


def parse(values: Sequence[str] | None) -> tuple[str, ...]:
    """`["Q4_K_M,q8_0", "F16"]` -> `("Q4_K_M", "Q8_0", "F16")`: each type once, in the order given.

    Raises:
        UserError: an unknown type, or one that needs an importance matrix.
    """
    names = [part.strip().upper() for value in values or () for part in value.split(",") if part.strip()]
    chosen: dict[str, None] = {}
    for given in names or DEFAULT:
        name = ALIASES.get(given, given)
        if name in NEED_IMATRIX:
            raise UserError(
                f"{name} needs an importance matrix, which this version does not make",
                "take IQ3_XS, Q2_K or a larger type",
            )
        if name not in OFFERED:
            near = difflib.get_close_matches(name, OFFERED, n=1)
            hint = f"did you mean {near[0]}?" if near else "types: " + ", ".join(OFFERED)
            raise UserError(f"{name!r} is not a quantization type", hint)
        chosen[name] = None
    return tuple(chosen)
