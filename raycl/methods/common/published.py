"""Settings that papers and released code publish and several methods share, by model family and order of tasks."""

from __future__ import annotations

from raycl.files import Json


def is_t5(family: str) -> bool:
    """Whether a model type (`model_type` of its configuration) is a T5: all published settings tell T5 from the rest."""
    return family in ("t5", "mt5")


def is_short(order: str) -> bool:
    """Whether an order is of SuperNI tasks, whose few examples are trained on for more epochs, at a lower rank."""
    return order.startswith("sni")


def t5_dropout(family: str) -> float:
    """The base model's own dropout: T5 is trained with it on, as its configuration says and the scripts leave it."""
    return 0.1 if is_t5(family) else 0.0


def lora_settings(family: str, order: str) -> Json:
    """Published settings of the plain LoRA baselines (O-LoRA and MIGU conventions; SLAO for Llama-2-7B)."""
    return {
        "model": {"dropout": t5_dropout(family)},
        "method": {"rank": 4 if is_short(order) else 8, "alpha": 32.0, "dropout": 0.1},
        "train": {"lr": 1e-3 if is_t5(family) else 1e-4, "epochs": 1, "batch_size": 64, "weight_decay": 0.0},
    }


def full_settings(family: str) -> Json:
    """Settings for training all weights: MIGU's re-runs of the suite for T5-Large, TRACE's scripts for 7B chat models."""
    if is_t5(family):
        train: Json = {"lr": 1e-4, "epochs": 1, "batch_size": 64, "weight_decay": 0.01}
        return {"model": {"dropout": 0.1}, "train": train}
    return {"train": {"lr": 1e-5, "epochs": 1, "batch_size": 16, "schedule": "cosine", "weight_decay": 0.0}}


def gpm_settings(family: str, order: str) -> Json:
    """GainLoRA's settings for its InfLoRA and GainLoRA rows (released scripts; the fork's for Llama).

    A layer basis must hold 0.995 of the energy in the release's measure, the squares of C's eigenvalues.
    """
    short, t5 = is_short(order), is_t5(family)
    train: Json = {"lr": 3e-4, "epochs": 100 if short else 10} if t5 else {"lr": 5e-5, "epochs": 50}
    return {
        "model": {"dropout": t5_dropout(family)},
        "method": {
            "rank": 4 if short else 8,
            "alpha": 32.0,
            "dropout": 0.0,
            "epsilon": 0.995,
            "energy_power": 2,
        },
        "train": {**train, "batch_size": 32, "keep": "best", "holdout": 0.1},
        "data": {"max_source_tokens": 512 if t5 else 1024},
    }
