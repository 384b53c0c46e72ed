"""The published settings of every method, by hand: T5-Large and 7B Llamas, orders of the benchmark and of SuperNI."""

from __future__ import annotations

from typing import Any

import pytest

from raycl.methods.registry import METHODS, method_class

Flat = dict[str, Any]
FAMILIES = ("t5", "llama")
LORA: Flat = {"rank": 8, "alpha": 32.0, "dropout": 0.1, "epochs": 1, "batch_size": 64, "weight_decay": 0.0}
"""O-LoRA's conventions, which most LoRA rows follow; `dropout` is the branch's, `model.dropout` the base model's."""
BY_FAMILY: dict[str, Flat] = {
    "t5": LORA | {"lr": 1e-3, "model.dropout": 0.1},
    "llama": LORA | {"lr": 1e-4, "model.dropout": 0.0},
}
FULL: dict[str, Flat] = {
    "t5": {"lr": 1e-4, "epochs": 1, "batch_size": 64, "weight_decay": 0.01, "model.dropout": 0.1},
    "llama": {"lr": 1e-5, "epochs": 1, "batch_size": 16, "weight_decay": 0.0, "schedule": "cosine"},
}
"""MIGU's re-runs for T5-Large, TRACE's scripts for 7B chat models."""
DESIGNED: Flat = {"rank": 8, "alpha": 32.0, "dropout": 0.0, "epsilon": 0.995, "energy_power": 2}
SELECTED: Flat = {"batch_size": 32, "keep": "best", "holdout": 0.1}
GPM: dict[str, Flat] = {
    "t5": DESIGNED | SELECTED | {"lr": 3e-4, "epochs": 10, "model.dropout": 0.1, "max_source_tokens": 512},
    "llama": DESIGNED | SELECTED | {"lr": 5e-5, "epochs": 50, "model.dropout": 0.0, "max_source_tokens": 1024},
}
"""GainLoRA's runs."""
PROMPTS: Flat = {"batch_size": 8, "weight_decay": 1e-5}
SUPERNI: dict[str, dict[str, Flat]] = {
    "inf_lora": {"t5": {"rank": 4, "epochs": 100}, "llama": {"rank": 4}},
    "gain_lora": {"t5": {"rank": 4, "epochs": 100}, "llama": {"rank": 4}},
    "sapt_lora": {"t5": {"rank": 4, "epochs": 100, "kl_weight": 0.5}, "llama": {"epochs": 50, "kl_weight": 1.0}},
    "slao": {"t5": {}, "llama": {"lr": 5e-5, "epochs": 5}},
    "o_lora": {"t5": {"rank": 4}, "llama": {"rank": 4, "lr": [1e-3] + [1e-4] * 14}},
    **{
        name: {f: {"rank": 4} for f in FAMILIES}
        for name in ("sin_lora", "inc_lora", "wise", "ogd", "gem", "mbpa", "lorac", "c_lora", "lwf", "migu", "ella")
    },
    "n_lora": {"t5": {"rank": 4, "batch_size": 32}, "llama": {"rank": 4}},
    **{name: {f: {"rank": 4} for f in FAMILIES} for name in ("merging", "route_lora", "self_distill")},
}
"""What differs on an order of SuperNI tasks."""
GATES: Flat = {"gate_epsilon": 0.995, "gate_energy_power": 2, "gate_input": "raw"}
SAPT: Flat = {"rank": 8, "alpha": 32.0, "dropout": 0.0, "kl_weight": 0.1, "lr": 3e-4, "epochs": 10, "batch_size": 32}
OSF: Flat = {"form": "full", "protect": 0.5, "dropout": 0.0, "epochs": 1, "batch_size": 8, "weight_decay": 0.0}
OSF |= {"model.dropout": 0.0}
BENCHMARK: dict[str, dict[str, Flat]] = {
    **dict.fromkeys(("sin_lora", "inc_lora", "wise", "ogd", "gem", "mbpa", "self_distill"), BY_FAMILY),
    **dict.fromkeys(("lorac", "lwf", "merging", "route_lora"), BY_FAMILY),
    "seq_ft": FULL,
    **{name: {f: FULL[f] | {"trains": "full"} for f in FAMILIES} for name in ("replay", "per_task", "mtl")},
    "ewc": {f: FULL[f] | {"trains": "full", "weight": 400.0} for f in FAMILIES},
    "o_lora": {"t5": BY_FAMILY["t5"], "llama": BY_FAMILY["llama"] | {"lr": [1e-3, 1e-4, 1e-4, 1e-4]}},
    "am_lora": {
        "t5": BY_FAMILY["t5"] | {"l1": 1e-5, "lr": 1e-4},
        "llama": BY_FAMILY["llama"] | {"l1": 1e-5, "batch_size": 8},
    },
    "c_lora": {"t5": BY_FAMILY["t5"] | {"forgetting": 1e2}, "llama": BY_FAMILY["llama"] | {"forgetting": 1e6}},
    "ella": {f: BY_FAMILY[f] | {"lr": 1e-3, "batch_size": 32, "max_source_tokens": 512} for f in FAMILIES},
    "n_lora": {
        "t5": BY_FAMILY["t5"] | {"penalty": "ab_l1", "sparsity": 0.4, "epochs": 10, "batch_size": 48},
        "llama": BY_FAMILY["llama"],
    },
    "osf": {"t5": OSF | {"lr": 5e-5, "model.dropout": 0.1}, "llama": OSF | {"lr": 1e-5, "weight_decay": 0.01}},
    "migu": {f: BY_FAMILY[f] | {"dropout": 0.05, "weight_decay": 0.01} for f in FAMILIES},
    "tree_lora": {"t5": BY_FAMILY["t5"], "llama": BY_FAMILY["llama"] | {"batch_size": 32, "schedule": "cosine"}},
    "slao": {"t5": BY_FAMILY["t5"], "llama": BY_FAMILY["llama"] | {"alpha": 16.0, "batch_size": 8}},
    "inf_lora": GPM,
    "gain_lora": {
        "t5": GPM["t5"] | GATES,
        "llama": GPM["llama"] | GATES | {"gate_hidden": [50], "gate_chunks": 4, "layer_chunks": 4},
    },
    "sapt_lora": {
        "t5": SAPT | {"weight_decay": 0.0, "model.dropout": 0.1},
        "llama": SAPT
        | {"weight_decay": 0.0, "model.dropout": 0.0, "rank": 4, "kl_weight": 2.0, "lr": 5e-5, "epochs": 20},
    },
    "l2p": {"t5": {"lr": 0.3, "weight_decay": 0.0}, "llama": {"lr": 0.03, "weight_decay": 0.0}},
    "lfpt5": {
        "t5": PROMPTS | {"lr": 0.3, "model.dropout": 0.1},
        "llama": PROMPTS | {"lr": 0.03, "model.dropout": 0.0},
    },
    "prog_prompt": {
        "t5": PROMPTS | {"lr": 0.3, "epochs": 10, "keep": "best", "holdout": 0.1, "model.dropout": 0.1},
        "llama": PROMPTS | {"lr": 0.03, "epochs": 10},
    },
}
"""Method -> family -> its settings on order 1."""
LISTS: dict[tuple[str, str, str], Flat] = {
    ("o_lora", "t5", "long-6"): {
        "lambda1": [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 5, 5, 5, 5, 5, 5],
        "lambda2": [0, 0, 0, 0, 0.1, 0.1, 0.3, 0, 0.1, 0, 0, 0.1, 0, 0.1, 0.3],
        "epochs": [1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    },
    ("o_lora", "llama", "long-4"): {"lr": [1e-3] + [1e-4] * 14},
    ("o_lora", "llama", "std-3"): {"lr": [1e-3] + [1e-4] * 3},
    ("o_lora", "llama", "custom"): {"lr": 1e-4},
    ("n_lora", "t5", "long-4"): {"lr": 5e-4, "epochs": 1, "batch_size": 32},
    ("n_lora", "t5", "long-5"): {"lr": 8e-4, "sparsity": 0.55, "epochs": 1, "batch_size": 32},
    ("n_lora", "t5", "long-6"): {"sparsity": 1.8, "epochs": 1, "batch_size": 32},
    ("am_lora", "t5", "long-4"): {"l1": [0, *[0.01] * 5, 0.3, *[0.001] * 8]},
    ("am_lora", "llama", "long-5"): {"l1": [1e-4, 1e-4, *[0.001] * 8, *[0.01] * 5]},
    ("am_lora", "t5", "long-6"): {"l1": [0.001] * 15},
}
"""(method, family, order) -> what differs from order 1."""


def flat(method: str, family: str, order: str) -> Flat:
    """A method's settings without their sections, but for the base model's dropout."""
    settings = method_class(method).settings(family, order)
    sections = (settings.get(name, {}) for name in ("method", "train", "data"))
    merged = {name: value for section in sections for name, value in section.items()}
    return merged | {f"model.{name}": value for name, value in settings.get("model", {}).items()}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_settings_are_the_published_ones(method: str, kind: str) -> None:
    """No more and no less, on the benchmark and on SuperNI; relatives of a family have its settings."""
    assert flat(method, kind, "std-1") == BENCHMARK[method][kind]
    assert flat(method, kind, "sni-1") == BENCHMARK[method][kind] | SUPERNI.get(method, {}).get(kind, {})
    relative = {"t5": "mt5", "llama": "qwen2"}[kind]
    assert flat(method, relative, "std-1") == BENCHMARK[method][kind]


@pytest.mark.parametrize(("method", "kind", "order"), LISTS)
def test_lists_per_stage(method: str, kind: str, order: str) -> None:
    """Task by task, in the order of the tasks; an order of one's own has one rate."""
    expected = BENCHMARK[method][kind] | LISTS[method, kind, order]
    assert flat(method, kind, order) == expected
