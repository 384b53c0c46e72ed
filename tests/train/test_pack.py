"""Siblings packed: what each ends with is what it ends with alone, and whoever cannot be packed says why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from raycl.adapters.branches import seated
from raycl.adapters.packed import CannotPack, PackedLora
from raycl.methods.common.base import Penalty, StageInfo
from raycl.methods.registry import build, method_class, method_params
from raycl.state.stage_state import Branch, StageState
from raycl.testing.toys import in_json, make_toy_task, run_stage_in_memory, toy_spec
from raycl.train.batches import Encoder
from raycl.train.pack import Pack
from raycl.train.stage import StageRun
from raycl.train.workers import Workers
from tests.kit.cases import CASES
from tests.kit.runs import assert_same_part

CLOSE = 1e-5
SIBLINGS: list[dict[str, Any]] = [{"lr": 3e-3, "seed": 0}, {"lr": 1e-3, "seed": 0}, {"lr": 3e-3, "seed": 7}]
TASKS = [make_toy_task(number, spread=3) for number in (1, 2)]
OWN, PROMPTS = "own weights train", "puts no LoRA branches on the model"
ALONE = {
    **dict.fromkeys(("seq_ft", "replay_full", "per_task_full", "merging_full", "ewc_full", "migu_over_seq_ft"), OWN),
    **dict.fromkeys(("prog_prompt", "prog_prompt_mlp", "l2p", "l2p_diverse", "l2p_fixed_keys", "lfpt5"), PROMPTS),
}
"""Cases that cannot be packed, and why."""
SIN, O_LORA = {"name": "sin_lora", "rank": 4}, {"name": "o_lora", "rank": 4, "lambda1": 0.1}


def stage_run(
    model: Any, params: dict[str, Any], state: StageState | None = None, seed: int = 0, **train: Any
) -> StageRun:
    """The stage after `state`, not run yet."""
    state = state or StageState()
    validated = method_params(params["name"]).model_validate(params)
    task = TASKS[state.stage]
    alone = method_class(params["name"]).alone(validated)
    method = build(validated, StageInfo(state.stage + 1, len(TASKS), task.name, seed, alone))
    spec = toy_spec(model, validated, TASKS, seed, {"epochs": 2, "log_every": 1, **train})
    encoder = Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)
    return StageRun(model, method, state, task, spec, encoder, Workers(), lambda event: None)


def undisturbed(case: str) -> dict[str, Any]:
    """A case's parameters without dropout."""
    params = dict(CASES[case].params)
    return params | {"dropout": 0.0} if "dropout" in params else params


def losses(run: StageRun) -> list[float]:
    """All logged losses and raw penalties, in order."""
    return [value for step in in_json(run.log) for value in (step["loss"], *(t["raw"] for t in step["terms"].values()))]


def require_same(alone: list[StageRun], packed: list[StageRun]) -> None:
    """Both train the same parts by the same losses, and leave the base model as it was."""
    model = packed[0].model.backbone.model
    parts = [run.run() for run in alone]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    together = Pack(packed).run()
    for one, other, part, twin in zip(alone, packed, parts, together, strict=True):
        assert twin is not None
        assert_same_part(part, twin, CLOSE)
        assert losses(one) == pytest.approx(losses(other), abs=CLOSE, rel=CLOSE)
        assert one.trainable == other.trainable
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_every_method_trains_packed_as_alone_or_says_why_not(tiny: Any, case: str) -> None:
    """Stage 2 with two rates and two seeds. The toy states differ far more between siblings than by round-off."""
    params = undisturbed(case)
    joint = method_class(params["name"]).joint
    first = StageState() if joint else run_stage_in_memory(tiny, params, TASKS, None, lr=1e-2).state
    packed = [stage_run(tiny, params, first, **one) for one in SIBLINGS]
    if case in ALONE:
        with pytest.raises(CannotPack, match=ALONE[case]):
            Pack(packed).run()
        assert not seated(tiny.backbone)
        return
    require_same([stage_run(tiny, params, first, **one) for one in SIBLINGS], packed)
    ends = [run.log[-1].loss for run in packed]
    assert min(abs(ends[0] - ends[1]), abs(ends[0] - ends[2])) > 20 * CLOSE


@pytest.mark.parametrize("family", ["t5"], indirect=True)
@pytest.mark.parametrize("case", ["o_lora", "gain_lora_over_inf", "am_lora_ar", "replay"])
def test_an_encoder_decoder_trains_packed_as_alone(tiny: Any, case: str) -> None:
    """Rows of the encoder and of the decoder, answers padded on the right."""
    params = undisturbed(case)
    first = run_stage_in_memory(tiny, params, TASKS, None, lr=1e-2).state
    alone, packed = ([stage_run(tiny, params, first, **one) for one in SIBLINGS] for _ in range(2))
    require_same(alone, packed)


@pytest.mark.parametrize(
    "train",
    [
        {"micro_batch_size": 4},
        {"keep": "best", "holdout": 0.25},
        {"loss": "eaft"},
        {"base_kl": 0.1},
        {"optimizer": "muon"},
        {"batch_size": 5},
    ],
    ids=str,
)
def test_settings_of_training_act_on_each_sibling(tiny: Any, train: dict[str, Any]) -> None:
    """Accumulation, the best epoch, losses, optimizers, a last batch that is filled up."""
    state = run_stage_in_memory(tiny, O_LORA, TASKS, None, lr=1e-2).state
    alone, packed = ([stage_run(tiny, O_LORA, state, **one, **train) for one in SIBLINGS] for _ in range(2))
    require_same(alone, packed)


@pytest.mark.parametrize("family", ["llama", "t5"], indirect=True)
@pytest.mark.parametrize("case", ["lwf", "sin_lora", "self_distill"])
def test_each_sibling_has_answers_as_long_as_its_own(tiny: Any, case: str) -> None:
    """One row a pass, whose answer is shorter than its sibling's: terms that run the model again see what they see alone."""
    params, train = undisturbed(case), {"micro_batch_size": 1, "base_kl": 0.1, "epochs": 1}
    first = run_stage_in_memory(tiny, params, TASKS, None, lr=1e-2).state
    assert len({len(row.answers[0].split()) for row in TASKS[1].train}) > 1
    alone, packed = ([stage_run(tiny, params, first, **one, **train) for one in SIBLINGS] for _ in range(2))
    require_same(alone, packed)


def test_siblings_of_different_ranks_and_weights_train_as_alone(tiny: Any) -> None:
    """What is no batched product is computed sibling by sibling."""
    state = run_stage_in_memory(tiny, O_LORA, TASKS, None, lr=1e-2).state
    others = [O_LORA | change for change in ({"rank": 2}, {"lambda1": 5.0}, {})]
    alone, packed = ([stage_run(tiny, params, state, lr=3e-3) for params in others] for _ in range(2))
    require_same(alone, packed)


@pytest.mark.parametrize("weights", ["plain", "gated"])
def test_the_base_and_the_frozen_branches_are_computed_once(
    tiny: Any, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of n siblings a module's base product is one of n times the rows; plain branches are one batched product."""
    params = O_LORA if weights == "plain" else undisturbed("gain_lora_over_o")
    state = run_stage_in_memory(tiny, params, TASKS, None, lr=1e-2).state
    seen: list[tuple[int, bool]] = []
    forward = PackedLora.forward

    def watched(self: PackedLora, x: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append((x.shape[0], self._plain))
        return forward(self, x, *args)

    monkeypatch.setattr(PackedLora, "forward", watched)
    Pack([stage_run(tiny, params, state, batch_size=4, epochs=1, **one) for one in SIBLINGS]).run()
    assert {rows for rows, _ in seen} == {3 * 4}
    assert {plain for _, plain in seen} == {weights == "plain"}


def test_a_sibling_that_diverges_leaves_the_others_as_they_are_alone(tiny: Any) -> None:
    """Its part is none, and the others never meet its numbers."""
    good = {"lr": 3e-3}
    pack = Pack([stage_run(tiny, SIN, **good) for _ in range(3)])
    nothing = torch.tensor(math.nan)
    pack.runs[1].method.penalties = lambda step: {"bad": Penalty(step.logits.sum() * nothing, 1.0)}
    first, none, last = pack.run()
    assert none is None and "the loss is" in str(pack.diverged[1]) and len(pack.diverged) == 1
    alone = stage_run(tiny, SIN, **good).run()
    for part in (first, last):
        assert part is not None
        assert_same_part(alone, part, CLOSE)
    assert not any(map(math.isnan, losses(pack.runs[0])))


@pytest.mark.parametrize(
    ("params", "trains", "why"),
    [
        ([SIN | {"dropout": 0.1}] * 2, [{}, {}], "dropout"),
        ([SIN, SIN], [{"epochs": 1}, {"epochs": 2}], "different numbers of steps"),
        ([SIN, SIN], [{"batch_size": 4}, {"batch_size": 8}], "different numbers of steps"),
        ([SIN, SIN], [{"batches": "equal_tokens"}, {"batches": "equal_tokens", "seed": 1}], "another number of them"),
        ([SIN, SIN], [{}, {"engine": "deepspeed"}], "plain torch"),
        ([SIN, SIN | {"targets": ["all-linear"]}], [{}, {}], "different modules"),
        ([SIN, {"name": "am_lora", "rank": 4}], [{}, {}], "do not weigh the same"),
    ],
    ids=["dropout", "epochs", "batches", "tokens", "engine", "modules", "gates"],
)
def test_what_does_not_add_up_is_refused_before_anything_trains(
    tiny: Any, params: list[dict[str, Any]], trains: list[dict[str, Any]], why: str
) -> None:
    """With the reason, and the backbone clean."""
    runs = [stage_run(tiny, one, **train) for one, train in zip(params, trains, strict=True)]
    with pytest.raises(CannotPack, match=why):
        Pack(runs).run()
    assert not any(run.log for run in runs) and not seated(tiny.backbone)


def test_siblings_of_other_parents_are_refused(tiny: Any) -> None:
    """Their frozen branches differ, so there is no one stack."""
    states = [run_stage_in_memory(tiny, O_LORA, TASKS, None, lr=lr).state for lr in (1e-2, 1e-3)]
    with pytest.raises(CannotPack, match="frozen branches differ"):
        Pack([stage_run(tiny, O_LORA, state) for state in states]).run()


def test_a_checkpointed_or_imported_stage_is_refused(tiny: Any) -> None:
    """Neither is trained from its first step to its last."""
    kept, taken = stage_run(tiny, SIN), stage_run(tiny, SIN)
    kept.partial, taken.imported = object(), Branch(1, 1.0, {}, {})  # pyright: ignore[reportAttributeAccessIssue]
    for run, why in ((kept, "checkpoint_every"), (taken, "imported")):
        with pytest.raises(CannotPack, match=why):
            Pack([run, stage_run(tiny, SIN)]).run()


def test_rows_of_tokens_say_not_whose_they_are(tiny: Any) -> None:
    """As experts of a mixture read them."""
    run = stage_run(tiny, SIN)
    run.prepare()
    layers = list(seated(tiny.backbone).values())[:1] * 2
    packed = PackedLora(layers)
    width = layers[0].down.shape[1]
    with pytest.raises(CannotPack, match="in one row"):
        packed(torch.zeros(6, width))
    deep = torch.randn(4, 2, 3, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(deep), layers[0](deep))
    run.method.remove()


def test_a_method_that_runs_the_model_to_prepare_itself_runs_its_own_branch(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the pack's, whose rows are those of all siblings."""
    seen: list[bool] = []

    def look(method: Any, inputs: Any) -> None:
        modules = list(tiny.backbone.model.modules())
        seen.append(any(isinstance(one, PackedLora) for one in modules))
        assert all(layer in modules for layer in method.trainee.branches.layers.values())

    monkeypatch.setattr(method_class("sin_lora"), "condition", look)
    Pack([stage_run(tiny, SIN, epochs=1, **one) for one in SIBLINGS]).run()
    assert seen and not any(seen)
