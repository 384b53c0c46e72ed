"""What a branch says of itself to PEFT."""

from __future__ import annotations

import json

import torch

from raycl.adapters.branches import LoraShape, adapter_config, fitted
from raycl.state.stage_state import Branch


def test_the_config_of_a_branch_is_plain_peft(tiny, family):
    """Rank, alpha and modules of the branch, ready for inference, no dropout, nothing private, JSON as it is."""
    paths = ["model.layers.1.self_attn.v_proj", "model.layers.0.self_attn.q_proj"]
    if family == "t5":
        paths = ["encoder.block.1.layer.0.SelfAttention.v", "encoder.block.0.layer.0.SelfAttention.q"]
    branch = Branch(3, 6.0, {path: torch.zeros(3, 48) for path in paths}, {path: torch.zeros(8, 3) for path in paths})
    config = adapter_config(tiny.backbone, branch, "owner/base")
    assert json.loads(json.dumps(config)) == config
    assert not [name for name in config if name.startswith("_")]
    wanted = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM",
        "base_model_name_or_path": "owner/base",
        "r": 3,
        "lora_alpha": 6.0,
        "lora_dropout": 0.0,
        "target_modules": sorted(paths),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "fan_in_fan_out": False,
    }
    assert {name: config[name] for name in wanted} == wanted


def test_a_branch_of_another_rank_is_the_same_function() -> None:
    """Zeros fill up A and B, B takes over the scale, and a module that the branch lacks has an update of zero."""
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    found = fitted(
        Branch(2, 6.0, {"one": a}, {"one": b}), LoraShape(rank=5, alpha=10.0), {"one": (3, 4), "two": (3, 3)}
    )
    assert (found.rank, found.alpha) == (5, 10.0)
    assert (found.a["one"].shape, found.b["one"].shape) == ((5, 3), (4, 5))
    assert torch.allclose(2.0 * found.b["one"] @ found.a["one"], 3.0 * b @ a)
    assert (found.a["two"].shape, found.b["two"].shape) == ((5, 3), (3, 5))
    assert not found.a["two"].any() and not found.b["two"].any()
