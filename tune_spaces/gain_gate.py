"""GainLoRA's gate: width and depth, score, squashing, pooling, and how much of the gate's features is kept off limits."""

BASE = {"method.name": "gain_lora", "method.over": "o_lora"}

SPACE = {
    "method.gate_hidden": [[], [50], [100], [200], [100, 100]],  # hidden widths: none, one or two hidden levels
    "method.gate_score": ["cosine", "dot"],
    "method.gate_squash": ["abs_tanh", "clipped_abs", "abs_sin"],  # all have f(0) = 0
    "method.gate_pooling": ["mean_tokens", "max"],
    "method.gate_epsilon": [0.95, 0.99, 0.995, 0.999],
}

FIRST = [
    {  # the paper's
        "method.gate_hidden": [100],
        "method.gate_score": "cosine",
        "method.gate_squash": "abs_tanh",
        "method.gate_pooling": "mean_tokens",
        "method.gate_epsilon": 0.995,
    }
]
