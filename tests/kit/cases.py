"""The methods under test, and small helpers to look at what they compute. A new method is one line in CASES."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import Method, StageInfo
from raycl.methods.registry import build, method_class, method_params
from raycl.state.stage_state import StagePart, StageState
from raycl.train.batches import Encoder
from raycl.train.module import feed, precision

RANK, HIDDEN = 4, 32
SHAPE: dict[str, Any] = {"rank": RANK, "alpha": 16, "dropout": 0.1}
LAYERS: dict[str, Any] = {"epsilon": 0.9}
GATE: dict[str, Any] = {"gate_hidden": [HIDDEN]}


@dataclass(frozen=True)
class Case:
    """One method with toy settings."""

    params: dict[str, Any]
    trains: str
    """What a stage trains: A, B of the current branch, g = the new gate, W = all weights of the backbone."""
    keeps: str = ""
    """What a part holds beside its branch: g = a gate, G = bases of the gate's features, L = bases of layer inputs."""
    frozen_branches: bool = True
    """Whether old branches stay in the model beside the current one."""
    own: tuple[str, ...] = ()
    """Trainable parameters of the method's own modules, as named in the stage module; {0} = index of the stage from 0,
    * = any stage so far."""
    own_from: int = 1
    """First stage at which they are there."""
    continues: bool = True
    """Whether a stage starts from the function the one before ended with."""
    serves_trained: bool = True
    """Whether the served model has the weights that were trained, and not some merger of them."""
    rounding: float = 0.0
    """How far served logits may be from those after training, relative to the largest."""
    bare: bool = True
    """Whether the first stage starts from the base model's function."""
    rows: int = 1
    """Training rows that the first stage makes of one example."""
    falls: float = 3.0
    """By what factor at least the loss falls on a learnable task; soft prompts move a random frozen model only so far."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of TrainSpec for the method's toy stages; the same in all its cases."""

    @property
    def branch(self) -> bool:
        """Whether a part holds a LoRA branch."""
        return "B" in self.trains


ROUTER = tuple(f"extra.router.{name}" for name in ("down.weight", "up.weight", "norm.weight", "norm.bias", "key"))
PLAIN = {"frozen_branches": False}
APART = PLAIN | {"serves_trained": False, "continues": False}
"""A branch is trained alone, and served beside others: an input may take another one than the newest."""
MERGED = PLAIN | {"serves_trained": False}
PROMPT: dict[str, Any] = {**PLAIN, "bare": False, "falls": 1.3, "train": {"lr": 0.1}}
"""Soft prompts: they change the function from the start and need high learning rates."""
POOL = ("extra.pool.keys", "extra.pool.prompts")
MLP = [f"extra.prompt.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
CASES = {
    "seq_ft": Case({"name": "seq_ft"}, "W", **PLAIN),
    "sin_lora": Case({"name": "sin_lora"}, "AB", **PLAIN),
    "replay": Case({"name": "replay", "share": 0.5}, "AB", **PLAIN),
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
    "inc_lora": Case({"name": "inc_lora"}, "AB"),
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
CASES = {name: replace(case, params=(SHAPE if case.branch else {}) | case.params) for name, case in CASES.items()}

SELF = {"llama": ["model.layers.{}.self_attn"], "t5": ["encoder.block.{}.layer.0.SelfAttention"]}
SELF["t5"] += ["decoder.block.{}.layer.0.SelfAttention", "decoder.block.{}.layer.1.EncDecAttention"]
ADAPTED = {
    family: sorted(
        f"{block.format(layer)}.{name}"
        for block in SELF[family]
        for layer in (0, 1)
        for name in (("q_proj", "v_proj") if family == "llama" else ("q", "v"))
    )
    for family in SELF
}
"""Paths of the modules that carry adapters in the tiny models, written out independently of the code."""


def expected_trainable(case: Case, model: Any, family: str, stage: int) -> list[str]:
    """Names in the stage module of everything that may train at `stage`."""
    letters = [letter for letter in "AB" if letter in case.trains]
    names = [f"model.{path}.lora_{letter}.branch.weight" for path in ADAPTED[family] for letter in letters]
    if "W" in case.trains:
        names += [f"model.{name}" for name, _ in model.backbone.model.named_parameters()]
    for pattern in case.own if stage >= case.own_from else ():
        for index in range(stage) if "*" in pattern else [stage - 1]:
            names.append(pattern.replace("*", str(index)).format(index))
    if "g" in case.trains:
        names += [f"extra.gates.{stage - 1}.{part}.move" for part in ("layers.0", "layers.1", "key")]
    return sorted(names)


def tensors_of(part: StagePart) -> dict[str, Tensor]:
    """All tensors of a part by name."""
    found = dict(part.tensors)
    if part.branch is not None:
        found |= {f"a {path}": value for path, value in part.branch.a.items()}
        found |= {f"b {path}": value for path, value in part.branch.b.items()}
    return found


def same_part(left: StagePart, right: StagePart) -> bool:
    """Whether two parts agree bit for bit."""
    first, second = tensors_of(left), tensors_of(right)
    return (
        (left.task, left.facts) == (right.task, right.facts)
        and first.keys() == second.keys()
        and all(first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)
    )


def make_method(params: dict[str, Any], stage: int = 1, stages: int = 3, seed: int = 0) -> Method:
    """A method object outside of any stage run."""
    checked = method_params(params["name"]).model_validate(params)
    alone = method_class(params["name"]).alone(checked)
    return build(checked, StageInfo(stage, stages, f"toy{stage}", seed, alone))


@contextmanager
def serving(model: Any, params: dict[str, Any], state: StageState) -> Iterator[Method]:
    """A method that serves `state` on the model."""
    method = make_method(params, max(1, state.stage))
    method.serve(model.backbone, state)
    try:
        yield method
    finally:
        method.remove()


def encoder_of(model: Any) -> Encoder:
    """The encoder that the toy stages use."""
    return Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)


def batch_of(model: Any, examples: Any, answers: bool = True) -> Inputs:
    """Examples as one batch."""
    encoder = encoder_of(model)
    return encoder.collate(encoder.encode(examples), "cpu", answers)


@torch.no_grad()
def answer_logits(model: Any, method: Method | None, inputs: Inputs) -> list[Tensor]:
    """Per example, the logits at its real positions: the answer's, or for a decoder-only model all, soft prompt included."""
    backbone = model.backbone
    backbone.model.eval()
    if method is not None:
        method.condition(inputs)
    with precision(backbone):
        fed, mask, _ = feed(backbone, method, inputs)
        extra: dict[str, Any] = {"labels": inputs.labels}
        real = inputs.labels != -100
        if not backbone.encoder_decoder:
            extra, real = {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}, mask.bool()
        logits = backbone.model(**fed, use_cache=False, **extra).logits
    return [row[keep].float() for row, keep in zip(logits, real, strict=True)]


def served_logits(model: Any, params: dict[str, Any], state: StageState, examples: Any) -> list[Tensor]:
    """Logits of a served state on examples."""
    with serving(model, params, state) as method:
        return answer_logits(model, method, batch_of(model, examples))


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest absolute difference over two lists of equal shapes."""
    assert [a.shape for a in left] == [b.shape for b in right]
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def probe_logits(model: Any, examples: Any) -> Callable[..., list[Tensor]]:
    """A probe for `run_stage`: the logits of the training module on examples."""
    return lambda module, encoder: answer_logits(model, module.method, batch_of(model, examples))
