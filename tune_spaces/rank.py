"""Rank, alpha and the adapted modules of a LoRA method (--method; GainLoRA if none is given).

The names are those of Llama-like models; for T5 replace the second list by ["q", "k", "v", "o"].
"""

SPACE = {
    "method.rank": [4, 8, 16, 32],
    "method.alpha": [8.0, 16.0, 32.0, 64.0],
    "method.targets": [None, ["q_proj", "k_proj", "v_proj", "o_proj"]],  # none = the model's default: query and value
}

FIRST = [{"method.rank": 8, "method.alpha": 32.0, "method.targets": None}]
