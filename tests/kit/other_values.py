"""Hyper-parameters at other values than the cases have, to show which of them act."""

from __future__ import annotations

from typing import Any

from raycl.testing.case import another

OTHER_VALUES: dict[str, Any] = {
    "lambda1": 7.0,
    "lambda2": 7.0,
    "design": "random_projected",
    "epsilon": 0.5,
    "energy_power": 2,
    "layer_chunks": 2,
    "tokens_per_dim": 1,
    "init_constraint": False,
    "update_constraint": False,
    "detach_old": True,
    "weight": 3.0,
    "variant": ("nr", "ar"),
    "omega_lr": 0.1,
    "critical_share": 0.9,
    "share_of": "all",
    "beta1": 0.5,
    "beta2": 0.5,
    "forgetting": 7.0,
    "strength": 7.0,
    "penalty": ("exact", "factored"),
    "energy": ("squares", "sum"),
    "sparsity": 7.0,
    "gamma": 0.25,
    "fisher_examples": 3,
    "mix": [0.5, 2.0, -1.0],
    "rank": 2,
    "alpha": 5.0,
    "dropout": 0.5,
    "merges": ("both", "b"),
    "merge_schedule": ("none", "mean"),
    "start_from": ("random", "tuned"),
    "preserve_function": True,
    "threshold": 0.3,
    "kl_weight": 3.0,
    "replay_weight": 3.0,
    "temperature": 5.0,
    "layer": 2,
    "init": ("nearest", "random"),
    "routing": ("soft", "hard"),
    "families": ("merge", "off"),
    "family_below": 0.6,
    "shrinkage": "ledoit_wolf",
    "unknown": ("base", "nearest"),
    "unknown_quantile": 0.5,
    "bottleneck": 12,
    "lambda_kd": 0.5,
    "kl_rows": 5,
    "share": 0.9,
    "attempts": 3,
    "top_k": 5,
    "repetition_penalty": 1.5,
    "init_tokens": 7,
    "key_init": ("prompt_mean", "uniform"),
    "init_scale": 0.1,
    "pull": 7.0,
    "base": ("independent", "sequential"),
    "rule": ("mean", "ties"),
    "scale": 0.25,
    "trim": 0.5,
    "refactor_rank": 2,
    "tree_levels": 0,
    "choice": ("draw", "least"),
    "distance": "absolute",
    "candidates": 7,
    "repeats": 3,
    "average": (True, False),
    "targets": ["no_such_module"],
}
"""Another value than the cases have, or a tuple of values of which one is other than a case's."""


def other_value(name: str, value: Any) -> Any:
    """A value of a field that is not `value`."""
    return another(OTHER_VALUES[name], value)
