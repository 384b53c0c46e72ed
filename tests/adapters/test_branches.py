"""What a branch says of itself to PEFT."""

from __future__ import annotations

import json

import torch

from raycl.adapters.branches import adapter_config
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
