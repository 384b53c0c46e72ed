"""What a method says of its adapters is true: PEFT alone makes of them the model that is scored, or nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raycl.adapters.branches import adapter_config
from raycl.methods.registry import method_class
from raycl.state.manifest import Provenance
from raycl.state.store import Store
from raycl.testing.case import Case
from raycl.testing.probes import answer_logits, batch_of, serving
from tests.kit.cases import CASES

CLOSE = 5e-5
"""How far logits of up to about 10 may differ: the order in which branches are summed."""


def published(store: Store, model: Any, state: Any) -> list[str]:
    """The adapter folders of all stages, oldest first."""
    keys: list[str] = []
    for stage, part in enumerate(state.parts, start=1):
        if part.branch is not None:
            config = adapter_config(model.backbone, part.branch, model.name)
            parent = keys[-1] if keys else None
            keys.append(store.publish(part, Provenance({"stage": stage}, stage, parent, config)).key)
    return [f"{store.folder(key)}/adapter" for key in keys]


def by_peft(folder: Path, adapters: list[str], inputs: Any) -> list[Tensor]:
    """The logits with these adapters active at once."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForSeq2SeqLM if inputs.labels is not None and inputs.labels.shape != inputs.ids.shape else None
    base = (auto or AutoModelForCausalLM).from_pretrained(folder)
    model = PeftModel.from_pretrained(base, adapters[0], adapter_name="0")
    for index, adapter in enumerate(adapters[1:], start=1):
        model.load_adapter(adapter, adapter_name=str(index))
    model.base_model.set_adapter([str(index) for index in range(len(adapters))])
    fed = {"input_ids": inputs.ids, "attention_mask": inputs.mask}
    positions = {"position_ids": (inputs.mask.cumsum(dim=1) - 1).clamp(min=0)}
    with torch.no_grad():
        logits = model.eval()(**fed, **({"labels": inputs.labels} if auto else positions)).logits
    real = inputs.labels != -100 if auto else inputs.mask.bool()
    return [row[keep] for row, keep in zip(logits, real, strict=True)]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_peft_alone_makes_what_the_method_says(
    tiny: Any, tiny_folder: Path, trained: list[Any], case: Case, toy_tasks: list[Any], tmp_path: Path
) -> None:
    """The last adapter, or all of them at once, give the served logits exactly where that is said, and else they do not.
    What else is said is exported, and tested there (`tests/use/test_export.py`)."""
    state = trained[-1].state
    said = method_class(case.params["name"]).in_peft(trained[-1].method.params)
    adapters = published(Store(str(tmp_path)), tiny, state)
    if not adapters:
        assert said in ("none", "prompt", "weights")
        return
    inputs = batch_of(tiny, toy_tasks[0].test[:2] + toy_tasks[2].test[:2])
    with serving(tiny, case.params, state) as method:
        served = answer_logits(tiny, method, inputs)
    last, together = (by_peft(tiny_folder, chosen, inputs) for chosen in (adapters[-1:], adapters))
    found = {"last": apart(last, served), "sum": apart(together, served)}
    for way, distance in found.items():
        assert (distance < CLOSE) == (said == way or (said == "last" and len(adapters) == 1)), found


@pytest.mark.parametrize("name", ["inc_lora", "o_lora", "inf_lora"])
def test_weights_of_the_users_own_are_not_known_to_peft(name: str) -> None:
    """With a mix, the plain sum is another model."""
    method = method_class(name)
    assert method.in_peft(method.Params.model_validate(CASES[name].params | {"mix": [1.0, 1.0, 1.0]})) == "sum"
    assert method.in_peft(method.Params.model_validate(CASES[name].params | {"mix": [1.0, 0.5, 1.0]})) == "fixed"
