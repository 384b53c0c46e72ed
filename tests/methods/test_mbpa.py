"""MbPA++: local steps against plain gradient descent, whose neighbours, and that an answer depends on its input alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.adapters.base_features import mean_hidden
from raycl.adapters.local_weights import LocalWeights, descend
from raycl.adapters.token_rows import TokenRows
from raycl.methods.mbpa import MbpaParams, nearest
from raycl.models.load import LoadedModel
from raycl.state.stage_state import Branch, StageState
from raycl.tasks.task import Example, Task
from raycl.testing.probes import answer_logits, batch_of, encoder_of, make_method, same_part, serving, tensors_of
from raycl.testing.toys import StageResult
from raycl.train.generation import Decoder
from raycl.train.workers import Workers
from tests.kit.cases import CASES

PARAMS = CASES["mbpa"].params | {"dropout": 0.0}
RATES = {"llama": 0.02, "t5": 0.5}
"""Of the local steps: about as far as the loss still falls."""
RunSequence = Callable[..., list[StageResult]]


@pytest.fixture(name="state")
def _state(tiny: LoadedModel, toy_tasks: list[Task], run_sequence: RunSequence) -> StageState:
    """Two trained stages, with a memory of eight examples each."""
    return run_sequence(tiny, PARAMS, toy_tasks[:2])[-1].state


@pytest.fixture(name="strong")
def _strong(family: str) -> dict[str, Any]:
    """Settings under which the steps, and the distance from the trained branch, are felt."""
    return PARAMS | {"local_lr": RATES[family], "local_lambda": 0.5}


def memory_of(state: StageState) -> list[Example]:
    """The examples that a state keeps, oldest first."""
    kept = [record for part in state.parts for record in part.facts["memory"]]
    return [Example(one["id"], one["head"], one["body"], one["tail"], tuple(one["answers"])) for one in kept]


def by_hand(model: LoadedModel, branch: Branch, examples: list[Example], steps: int, rate: float, pull: float) -> Any:
    """The branch that gradient descent on it ends at: A and B merged into the bare model's weights, steps written out."""
    start = {f"{side} {path}": value for side in "ab" for path, value in getattr(branch, side).items()}
    current, network = dict(start), model.backbone.model
    inputs = batch_of(model, examples)
    scale = branch.alpha / branch.rank
    for _ in range(steps):
        leaves = {name: value.clone().requires_grad_() for name, value in current.items()}
        update = {path: scale * leaves[f"b {path}"] @ leaves[f"a {path}"] for path in branch.a}
        weights = {f"{path}.weight": network.get_submodule(path).weight + one for path, one in update.items()}
        fed: dict[str, Any] = {"input_ids": inputs.ids, "attention_mask": inputs.mask}
        if model.backbone.encoder_decoder:
            fed["labels"] = inputs.labels
        else:
            fed["position_ids"] = (inputs.mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = torch.func.functional_call(network, weights, kwargs=fed).logits
        labels = inputs.labels if model.backbone.encoder_decoder else inputs.labels[:, 1:]
        logits = logits if model.backbone.encoder_decoder else logits[:, :-1]
        loss = torch.stack([F.cross_entropy(said, label) for said, label in zip(logits, labels, strict=True)]).mean()
        loss = loss + pull * sum((leaves[name] - start[name]).square().sum() for name in start)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        current = {name: current[name] - rate * slope for (name, _), slope in zip(leaves.items(), slopes, strict=True)}
    return replace(branch, a={p: current[f"a {p}"] for p in branch.a}, b={p: current[f"b {p}"] for p in branch.b})


def embedded(model: LoadedModel, example: Example) -> Tensor:
    """The mean embedding of a prompt, independently of the method."""
    ids = torch.tensor(encoder_of(model).encode([example])[0].prompt)
    return model.backbone.model.get_input_embeddings().weight.detach().double()[ids].mean(dim=0)


def test_steps_by_hand() -> None:
    """Down (w - 3)^2 + 0.5 (w - 1)^2 from 1 by 0.1: the slopes are -4 and, at 1.4, -3.2 + 0.4; where W starts it stays."""
    start = [torch.tensor([1.0])]
    with torch.no_grad():
        found = descend(start, lambda weights: (weights[0] - 3).square().sum(), 2, 0.1, 0.5)
    assert found[0].tolist() == pytest.approx([1.4 + 0.28]) and start[0].tolist() == [1.0]
    assert not found[0].requires_grad and descend(start, lambda weights: weights[0].sum(), 0, 0.1, 0.5) is start


def test_the_nearest_by_hand() -> None:
    """Euclidean, nearest first; of equals the older one; all where there are fewer than wanted."""
    keys = torch.tensor([[0.0, 5.0], [1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])
    assert nearest(keys, torch.tensor([0.0, 0.0]), 3) == [1, 3, 2]
    assert nearest(keys, torch.tensor([2.9, 0.0]), 1) == [2]
    assert nearest(keys, torch.tensor([0.0, 9.0]), 9) == [0, 1, 3, 2]


def test_an_input_is_answered_by_gradient_descent_on_its_neighbours(
    tiny: LoadedModel, state: StageState, strong: dict[str, Any], toy_tasks: list[Task]
) -> None:
    """The served logits are those of a branch that was trained by hand on the nearest examples by mean embedding."""
    memory = memory_of(state)
    keys = torch.stack([embedded(tiny, one) for one in memory])
    plain = PARAMS | {"local_steps": 0}
    for example in (toy_tasks[0].test[0], toy_tasks[1].test[1]):
        near = (keys - embedded(tiny, example)).norm(dim=1).argsort(stable=True)[:3].tolist()
        branch = by_hand(
            tiny, state.newest.pair, [memory[place] for place in near], 2, strong["local_lr"], strong["local_lambda"]
        )
        adapted = (*state.parts[:-1], replace(state.newest, branch=branch))
        inputs = batch_of(tiny, [example])
        with serving(tiny, plain, replace(state, parts=adapted)) as method:
            wanted = answer_logits(tiny, method, inputs)[0]
        with serving(tiny, plain, state) as method:
            before = answer_logits(tiny, method, inputs)[0]
        with serving(tiny, strong, state) as method:
            found = answer_logits(tiny, method, inputs)[0]
        assert torch.allclose(found, wanted, atol=2e-4) and (found - before).abs().max() > 0.02


def test_the_keys_are_the_bare_models(
    tiny: LoadedModel, state: StageState, strong: dict[str, Any], toy_tasks: list[Task]
) -> None:
    """Means of hidden states under the branch would be others; so an input that is kept is its own nearest."""
    memory = memory_of(state)
    hidden = strong | {"features": "hidden", "layer": 2}
    inputs = batch_of(tiny, memory[:4], answers=False)
    alone = mean_hidden(tiny.backbone, inputs, inputs.mask, 2)
    with serving(tiny, hidden, state) as method:
        assert torch.allclose(method.keys[:4], alone, atol=1e-5)
        for place, example in enumerate(memory):
            ids = encoder_of(tiny).encode([example])[0].prompt
            first = nearest(method.keys, method._key(ids), 1)[0]
            assert memory[first].prompt == example.prompt and first <= place


def test_an_answer_depends_on_its_input_alone(
    tiny: LoadedModel, state: StageState, strong: dict[str, Any], toy_tasks: list[Task]
) -> None:
    """Bit for bit the same weights in any batch, at any place, after any other; the branch itself never moves."""
    examples = [*toy_tasks[0].test, *toy_tasks[1].test]
    with serving(tiny, strong, state) as method:
        branch = method.trainee.branch()

        def weights(rows: list[Example]) -> list[Tensor]:
            with torch.no_grad():
                method.condition(batch_of(tiny, rows, answers=False))
            return list(method.local._acting)

        together, turned = weights(examples), weights(examples[::-1])
        for index, example in enumerate(examples):
            for one, all_rows, other in zip(weights([example]), together, turned, strict=True):
                assert torch.equal(one[0], all_rows[index]) and torch.equal(one[0], other[-1 - index])
        again = method.trainee.branch()
        assert all(torch.equal(again.a[path], branch.a[path]) for path in branch.a)
        assert all(torch.equal(again.b[path], branch.b[path]) for path in branch.b)
    assert not all(torch.equal(row, together[1][0]) for row in together[1])


def test_generated_answers_are_those_of_batches_of_one(
    tiny: LoadedModel, state: StageState, strong: dict[str, Any], toy_tasks: list[Task]
) -> None:
    """Labels that are read and text that is written, by any batch size, from user code in inference mode too."""
    task = replace(toy_tasks[0], test=(*toy_tasks[0].test, *toy_tasks[1].test))
    with serving(tiny, strong, state) as method:
        texts = []
        for size in (1, 3, 8):
            decoder = Decoder(tiny, method, encoder_of(tiny), size, Workers())
            texts.append([one["prediction"] for one in decoder.score(task).predictions])
            texts.append([one.text for one in decoder.answer(task.test, 4)])
        with torch.inference_mode():
            method.condition(batch_of(tiny, task.test[:2], answers=False))
        assert texts[0] == texts[2] == texts[4] and texts[1] == texts[3] == texts[5]


def test_adaptation_raises_the_neighbours_likelihood(
    tiny: LoadedModel, state: StageState, strong: dict[str, Any], toy_tasks: list[Task]
) -> None:
    """After more steps on a kept example its answer is likelier."""
    example = memory_of(state)[0]
    losses = []
    for steps in (0, 1, 4):
        with serving(tiny, strong | {"local_steps": steps, "neighbours": 1, "local_lambda": 0.0}, state) as method:
            inputs = batch_of(tiny, [example])
            logits = answer_logits(tiny, method, inputs)[0]
            labels = inputs.labels[inputs.labels != -100]
            said = logits if tiny.backbone.encoder_decoder else logits[-len(labels) - 1 : -1]
            losses.append(F.cross_entropy(said, labels).item())
    assert losses[0] > losses[1] > losses[2]


def test_adaptation_in_bf16(
    tiny_bf16: LoadedModel, strong: dict[str, Any], toy_tasks: list[Task], run_sequence: RunSequence
) -> None:
    """The copies stay fp32 and move; what is answered is of the size it was."""
    state = run_sequence(tiny_bf16, PARAMS, toy_tasks[:1])[-1].state
    with serving(tiny_bf16, strong, state) as method:
        logits = answer_logits(tiny_bf16, method, batch_of(tiny_bf16, toy_tasks[0].test))
        moved = zip(method.local._acting, method.local.trained, strict=True)
        assert all(one.dtype == torch.float32 and not torch.equal(one[0], start) for one, start in moved)
    assert all(row.isfinite().all() for row in logits)


def test_without_steps_nothing_is_adapted(
    tiny: LoadedModel, state: StageState, toy_tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """local_steps = 0 is the trained branch, bit for bit SinLoRA's serving of it, and makes no key."""
    monkeypatch.setattr("raycl.methods.mbpa.descend", lambda *args: pytest.fail("it adapts"))
    monkeypatch.setattr("raycl.methods.mbpa.mean_embedding", lambda *args: pytest.fail("it makes keys"))
    inputs = batch_of(tiny, toy_tasks[0].test)
    found = []
    for params in (PARAMS | {"local_steps": 0}, CASES["sin_lora"].params):
        with serving(tiny, params, state) as method:
            found.append(answer_logits(tiny, method, inputs))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_training_replays_a_few(tiny: LoadedModel, state: StageState, toy_tasks: list[Task]) -> None:
    """A quarter of 16 rows from the memory, of both tasks alike by chance, the same draw each time; 0 replays none."""
    found = {}
    for share in (0.25, 0.01, 0.0):
        method = make_method(PARAMS | {"replayed": share}, 3)
        method.install(tiny.backbone, state)
        try:
            rows, again = (list(method.examples(toy_tasks[2].train, None)) for _ in range(2))
        finally:
            method.remove()
        assert rows == again and [row.example for row in rows[:16]] == list(toy_tasks[2].train)
        found[share] = rows[16:]
    assert [len(rows) for rows in found.values()] == [4, 1, 0]
    assert {row.stage for row in found[0.25]} <= {1, 2} and all(row.weight == 1 for row in found[0.25])
    assert {row.example.prompt for row in found[0.25]} <= {one.prompt for one in memory_of(state)}


def test_without_replay_and_steps_it_is_sin_lora(
    tiny: LoadedModel, toy_tasks: list[Task], run_sequence: RunSequence
) -> None:
    """Bit for bit the same branches over three tasks."""
    ours = run_sequence(tiny, PARAMS | {"replayed": 0.0}, toy_tasks)
    plain = run_sequence(tiny, CASES["sin_lora"].params | {"dropout": 0.0}, toy_tasks)
    for one, other in zip(ours, plain, strict=True):
        assert same_part(replace(one.part, tensors={}, facts={}), replace(other.part, tensors={}, facts={}))


def test_a_part_keeps_its_own_examples_as_the_model_reads_them(tiny: LoadedModel, state: StageState) -> None:
    """Token ids of the very examples that stand in the facts, and of no other task's."""
    for part in state.parts:
        rows = TokenRows.of({name.removeprefix("memory/"): value for name, value in part.tensors.items()})
        kept = encoder_of(tiny).encode(memory_of(StageState((part,))))
        assert len(rows) == 8 and part.tensors["memory/ids"].dtype == torch.int32
        assert rows.prompts == tuple(one.prompt for one in kept) and rows.answers == tuple(one.answer for one in kept)
        assert {name for name in tensors_of(part) if name.startswith("memory/")} == {"memory/ids", "memory/lengths"}


def test_a_forward_pass_must_be_conditioned(
    tiny: LoadedModel, state: StageState, strong: dict[str, Any], toy_tasks: list[Task]
) -> None:
    """On rows of a batch of the same size."""
    with serving(tiny, strong, state) as method:
        three, two = (batch_of(tiny, toy_tasks[0].test[:count]) for count in (3, 2))
        for condition in (False, True):
            if condition:
                method.condition(two)
            with pytest.raises(RuntimeError, match="must be conditioned"):
                tiny.backbone.model(input_ids=three.ids, attention_mask=three.mask, labels=three.labels)


def test_a_module_without_an_axis_of_examples_is_refused(
    tiny: LoadedModel, state: StageState, strong: dict[str, Any]
) -> None:
    """By the name of the setting that chooses modules."""
    with serving(tiny, strong, state) as method:
        local = LocalWeights(method.trainee.branches)
        with pytest.raises(ValueError, match=r"method\.targets: .* adapt other modules"):
            local._update(0, torch.zeros(4, 48))


def test_what_acts_in_serving() -> None:
    """Keys of scores hold what is read and nothing else; keys of stages hold none of it."""
    default = MbpaParams()
    assert default.serving() == {
        "local_steps": 2,
        "neighbours": 4,
        "local_lr": 0.01,
        "local_lambda": 0.001,
        "features": "embeddings",
    }
    assert MbpaParams(local_steps=0, neighbours=3).serving() == {"local_steps": 0}
    assert MbpaParams(features="hidden", layer=3).serving()["layer"] == 3
    assert not default.serving().keys() & default.at(2).keys() and "replayed" in default.at(2).keys() - default.at(1)
