"""The methods under test. A new method is one line in CASES."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raycl.testing.case import Case
from tests.kit.other_values import OTHER_VALUES

RANK, HIDDEN = 4, 32
SHAPE: dict[str, Any] = {"rank": RANK, "alpha": 16, "dropout": 0.1}
LAYERS: dict[str, Any] = {"epsilon": 0.9}
GATE: dict[str, Any] = {"gate_hidden": [HIDDEN]}


ROUTER = tuple(f"extra.router.{name}" for name in ("down.weight", "up.weight", "norm.weight", "norm.bias", "key"))
PLAIN = {"frozen_branches": False}
APART = PLAIN | {"serves_trained": False, "continues": False}
"""A branch is trained alone, and served beside others: an input may take another one than the newest."""
MERGED = PLAIN | {"serves_trained": False}
AVERAGED = {"serves_trained": False, "continues": False}
"""What is handed on lies between the model before the stage and the trained one."""
GUARDED: dict[str, Any] = {"holds_trained": False, "rounding": 5e-6}
"""A part holds what acts of the factors that train."""
PROMPT: dict[str, Any] = {**PLAIN, "bare": False, "falls": 1.3, "train": {"lr": 0.1}}
"""Soft prompts: they change the function from the start and need high learning rates."""
POOL = ("extra.pool.keys", "extra.pool.prompts")
MLP = [f"extra.prompt.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
CASES = {
    "seq_ft": Case({"name": "seq_ft"}, "W", **PLAIN),
    "sin_lora": Case({"name": "sin_lora"}, "AB", **PLAIN),
    "replay": Case({"name": "replay", "share": 0.5}, "AB", **PLAIN),
    "replay_own": Case({"name": "replay", "share": 0.25, "answers": "model", "candidates": 2}, "AB", **PLAIN),
    "replay_full": Case({"name": "replay", "share": 0.5, "trains": "full"}, "W", **PLAIN),
    "per_task": Case({"name": "per_task"}, "AB", **PLAIN, continues=False),
    "per_task_full": Case({"name": "per_task", "trains": "full"}, "W", **PLAIN, continues=False),
    "mtl": Case({"name": "mtl"}, "AB", **PLAIN),
    "slao": Case({"name": "slao"}, "AB", **MERGED, continues=False),
    "merging": Case({"name": "merging"}, "AB", **MERGED),
    "merging_independent": Case(
        {"name": "merging", "base": "independent", "rule": "ties"}, "AB", **MERGED, continues=False
    ),
    "merging_full": Case({"name": "merging", "trains": "full"}, "W", **MERGED),
    "tree_lora": Case({"name": "tree_lora"}, "AB", **PLAIN),
    "tree_lora_gradient": Case({"name": "tree_lora", "vector": "gradient", "choice": "draw"}, "AB", **PLAIN),
    "slao_both": Case({"name": "slao", "merges": "both", "start_from": "merged"}, "AB", **MERGED, continues=False),
    "ewc": Case({"name": "ewc", "weight": 5.0, "fisher_examples": 10}, "AB", **PLAIN),
    "ewc_full": Case({"name": "ewc", "weight": 5.0, "trains": "full"}, "W", **PLAIN),
    "ewc_history": Case({"name": "ewc", "weight": 50.0, "importance": "history"}, "AB", **PLAIN),
    "ogd": Case({"name": "ogd", "examples": 6}, "AB", **PLAIN),
    "gem": Case({"name": "gem", "share": 0.5, "repeats": 2}, "AB", **PLAIN),
    "gem_average": Case({"name": "gem", "share": 0.5, "repeats": 2, "average": True}, "AB", **PLAIN),
    "mbpa": Case({"name": "mbpa", "share": 0.5, "replayed": 0.25, "neighbours": 3, "local_steps": 2}, "AB", **MERGED),
    "mbpa_hidden": Case(
        {"name": "mbpa", "share": 0.5, "neighbours": 2, "local_steps": 1, "features": "hidden"}, "AB", **MERGED
    ),
    "mbpa_replay": Case({"name": "mbpa", "share": 0.5, "replayed": 0.25, "local_steps": 0}, "AB", **PLAIN),
    "self_distill": Case({"name": "self_distill"}, "AB", **PLAIN),
    "self_distill_data": Case(
        {"name": "self_distill", "samples": "data", "kl": "forward", "teacher_rate": 1.0}, "AB", **PLAIN
    ),
    "inc_lora": Case({"name": "inc_lora"}, "AB"),
    "wise": Case({"name": "wise"}, "AB", **AVERAGED),
    "wise_mean": Case({"name": "wise", "schedule": "mean"}, "AB", **AVERAGED),
    "o_lora": Case({"name": "o_lora", "lambda1": 0.1, "lambda2": 0.01}, "AB"),
    "am_lora_ar": Case(
        {"name": "am_lora", "variant": "ar", "l1": 0.01}, "AB", own=("extra.selectors.free",), continues=False
    ),
    "am_lora_nr": Case(
        {"name": "am_lora", "variant": "nr", "l1": 0.01}, "AB", own=("extra.selectors.free",), continues=False
    ),
    "am_lora_zero": Case(
        {"name": "am_lora", "variant": "nr", "l1": 0.01, "zero_logit": "trained"},
        "AB",
        own=("extra.selectors.free", "extra.selectors.zero"),
        continues=False,
    ),
    "prog_prompt": Case(
        {"name": "prog_prompt", "length": 4}, "", own=("extra.prompt.value",), continues=False, **PROMPT
    ),
    "prog_prompt_mlp": Case(
        {"name": "prog_prompt", "length": 4, "mlp": True, "bottleneck": 16},
        "",
        own=("extra.prompt.value", *MLP),
        continues=False,
        **PROMPT,
    ),
    "l2p": Case({"name": "l2p", "pool": 4, "length": 2, "picks": 2}, "", own=POOL, **PROMPT),
    "l2p_diverse": Case({"name": "l2p", "pool": 4, "length": 2, "picks": 2, "diversity": True}, "", own=POOL, **PROMPT),
    "l2p_fixed_keys": Case({"name": "l2p", "train_keys": False, "key_init": "prompt_mean"}, "", own=POOL[1:], **PROMPT),
    "lorac": Case({"name": "lorac", "ortho": 0.1}, "AB", own=("extra.omegas.move",), own_from=2),
    "lorac_ipc": Case(
        {"name": "lorac", "ipc": True, "critical_share": 0.05}, "AB", own=("extra.omegas.move",), own_from=2
    ),
    "lfpt5": Case(
        {"name": "lfpt5", "length": 4, "attempts": 4, "tokens": 12}, "", own=("extra.prompt.value",), rows=2, **PROMPT
    ),
    "c_lora": Case({"name": "c_lora", "forgetting": 0.5}, "AB"),
    "ella": Case({"name": "ella", "strength": 2.0}, "AB"),
    "ella_factored": Case({"name": "ella", "strength": 2.0, "penalty": "factored", "energy": "squares"}, "AB"),
    "n_lora": Case({"name": "n_lora", "sparsity": 1e-3}, "AB"),
    "osf": Case({"name": "osf", "protect": 3}, "AB", **GUARDED),
    "osf_full": Case({"name": "osf", "form": "full"}, "AB", own=("model.{path}.lora_B.branch.move",), **GUARDED),
    "inf_lora": Case({"name": "inf_lora", **LAYERS}, "B", "L"),
    "inf_lora_random": Case({"name": "inf_lora", **LAYERS, "design": "random_projected"}, "B", "L"),
    "gain_lora_over_o": Case(
        {"name": "gain_lora", "over": "o_lora", "lambda1": 0.1, **GATE}, "ABg", "gG", rounding=1e-6
    ),
    "gain_lora_over_inf": Case({"name": "gain_lora", "over": "inf_lora", **LAYERS, **GATE}, "Bg", "gGL", rounding=1e-6),
    "sapt_lora": Case(
        {"name": "sapt_lora", "share": 0.5, "query_hidden": 16}, "AB", own=ROUTER, own_from=2, continues=False
    ),
    "route_lora": Case({"name": "route_lora"}, "AB", **APART),
    "route_lora_hidden": Case(
        {"name": "route_lora", "features": "hidden", "region": "text", "routing": "soft"}, "AB", **APART
    ),
    "route_lora_families": Case({"name": "route_lora", "families": "merge"}, "AB", **APART),
    "route_lora_nearest": Case({"name": "route_lora", "init": "nearest", "unknown": "base"}, "AB", **APART),
    "lwf": Case({"name": "lwf"}, "AB"),
    "migu_over_seq_ft": Case({"name": "migu", "over": "seq_ft"}, "W", **PLAIN),
    "migu_over_sin": Case({"name": "migu", "over": "sin_lora", "threshold": 0.5}, "AB", **PLAIN),
    "migu_over_inc": Case({"name": "migu", "over": "inc_lora", "threshold": 0.5}, "AB"),
    "migu_over_o": Case({"name": "migu", "over": "o_lora", "lambda1": 0.1}, "AB"),
}
"""Every method, and every setting of one that changes what it trains or carries. A new method is one line here."""
CASES = {
    name: replace(case, params=(SHAPE if case.branch else {}) | case.params, other_values=OTHER_VALUES)
    for name, case in CASES.items()
}
