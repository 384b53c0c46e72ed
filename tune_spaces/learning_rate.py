"""The learning rate and its schedule, for any method (--method). A range, so there is no grid: random or Optuna."""

from ray import tune

SPACE = {
    "train.lr": tune.loguniform(1e-5, 5e-3),
    "train.schedule": ["constant", "linear", "cosine"],
    "train.warmup": [0.0, 0.1],
}

FIRST = [
    {"train.lr": 1e-3, "train.schedule": "constant", "train.warmup": 0.0},  # O-LoRA's with T5
    {"train.lr": 1e-4, "train.schedule": "constant", "train.warmup": 0.0},  # AM-LoRA's, and O-LoRA's with Llama
]
