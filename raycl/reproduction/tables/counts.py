"""How many numbers a LoRA method trains, from shapes alone: no model is built.

branch   sum over adapted modules of r (d_in + d_out);  InfLoRA trains only B: r d_out
gate     sum over its layers of width_in width_out, widths d, h, ..., d, plus the key: d
"""

from __future__ import annotations

from itertools import pairwise

from raycl.errors import SpecError
from raycl.reproduction.form import PaperModel
from raycl.spec import MethodParams

BRANCH = ("sin_lora", "inc_lora", "o_lora", "slao", "c_lora")
"""Methods that train A and B of one branch and nothing else."""


def gate_parameters(width: int, hidden: list[int]) -> int:
    """Numbers in one gate of GainLoRA: d -> hidden -> d and the key."""
    return sum(a * b for a, b in pairwise([width, *hidden, width])) + width


def trained_parameters(params: MethodParams, model: PaperModel) -> int:
    """Numbers that the first stage trains. Raises SpecError for a method that this module has no formula for."""
    values = params.model_dump()
    over = values.get("over") or values["name"]
    if over not in (*BRANCH, "inf_lora") or values.get("trains") == "full" or values.get("targets"):
        raise SpecError(
            f"method {values['name']!r}: no formula for its parameters; allowed: {', '.join(BRANCH)}, inf_lora, gain_lora, "
            "with the default targets; next step: run it and read `trainable_parameters` in a stage's manifest"
        )
    both = over != "inf_lora"
    branch = sum(count * values["rank"] * (d_out + d_in * both) for count, d_in, d_out in model.adapted)
    gate = gate_parameters(model.width, values["gate_hidden"]) if values["name"] == "gain_lora" else 0
    return branch + gate
