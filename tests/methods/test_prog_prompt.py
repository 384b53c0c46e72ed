"""Progressive Prompts: the order of the prompts, what trains, the folded MLP, and scores that never change."""

from __future__ import annotations

import pytest
import torch

from raycl.methods.prog_prompt import VALUE, ProgPrompt, Progressive, residual_mlp
from raycl.state.stage_state import StagePart, StageState
from raycl.testing.probes import answer_logits, batch_of, largest_difference, make_method, served_logits
from raycl.train.module import StageModule
from tests.kit.cases import CASES

PLAIN, MLP = CASES["prog_prompt"].params, CASES["prog_prompt_mlp"].params


def parts(width: int, *fills: float) -> StageState:
    """One part per number, whose prompt of two vectors is filled with it."""
    return StageState(
        tuple(StagePart(f"toy{i}", tensors={VALUE: torch.full((2, width), fill)}) for i, fill in enumerate(fills))
    )


def test_the_newest_prompt_stands_in_front(tiny):
    """[P_3, P_2, P_1], each of two vectors, one prompt for all rows."""
    method = make_method(PLAIN, 3)
    method.serve(tiny.backbone, parts(tiny.backbone.width, 1.0, 2.0, 3.0))
    soft = method.soft_prompt()
    assert soft.vectors.shape == (1, 6, tiny.backbone.width) and soft.place == "front"
    assert soft.vectors[0, :, 0].tolist() == [3, 3, 2, 2, 1, 1]


def test_a_new_prompt_is_drawn_from_the_vocabulary(tiny):
    """`length` rows of the embedding table stand before the earlier prompts, and the draw changes from stage to stage."""
    table = tiny.backbone.model.get_input_embeddings().weight
    drawn = []
    for stage in (1, 2):
        method = make_method(PLAIN, stage)
        method.install(tiny.backbone, parts(tiny.backbone.width, *[1.0] * (stage - 1)))
        vectors = method.soft_prompt().vectors[0]
        assert len(vectors) == 4 + 2 * (stage - 1) and torch.all(vectors[4:] == 1)
        assert all((table == vector).all(dim=1).any() for vector in vectors[:4])
        drawn.append(vectors[:4])
    assert not torch.equal(*drawn)


def test_only_the_new_prompt_has_a_gradient(tiny, toy_tasks):
    """The loss of a batch reaches P_t (and its MLP); P_1 and the backbone have none."""
    method = make_method(MLP, 2)
    state = parts(tiny.backbone.width, 1.0)
    method.install(tiny.backbone, state)
    module = StageModule(tiny.backbone, method)
    module(batch_of(tiny, toy_tasks[0].train))[0].backward()
    names = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert names == {
        f"extra.prompt.{name}" for name in ("value", *(f"mlp.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")))
    }
    assert not method.prompt.earlier.requires_grad
    assert torch.all(state.parts[0].tensors[VALUE] == 1)
    module.zero_grad(set_to_none=True)


def test_the_mlp_by_hand():
    """Z = (1, 0), W_1 = (1 2), b_1 = 1, W_2 = (3 0)^T, b_2 = (0 5): P = Z + W_2 tanh(2) + b_2."""
    mlp = residual_mlp(2, 1, torch.Generator())
    values = [[[1.0, 2.0]], [1.0], [[3.0], [0.0]], [0.0, 5.0]]
    for parameter, value in zip(mlp.parameters(), values, strict=True):
        parameter.data = torch.tensor(value)
    prompt = Progressive(torch.tensor([[1.0, 0.0]]), torch.zeros(0, 2), mlp)
    expected = [1 + 3 * torch.tanh(torch.tensor(2.0)).item(), 5.0]
    assert prompt()[0].tolist() == pytest.approx(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert prompt().dtype == torch.float32 and prompt()[0].tolist() == pytest.approx(expected)


def test_folded_and_unfolded_prompts_agree(tiny, toy_tasks, run_stage):
    """The part's prompt, served without the MLP, gives the logits that the trained MLP gives."""
    result = run_stage(tiny, MLP, toy_tasks)
    inputs = batch_of(tiny, toy_tasks[0].test)
    unfolded = answer_logits(tiny, result.method, inputs)
    assert result.part.tensors.keys() == {VALUE}
    assert largest_difference(served_logits(tiny, MLP, result.state, toy_tasks[0].test), unfolded) == 0
    assert not torch.equal(result.part.tensors[VALUE], result.after["extra.prompt.value"])


def test_earlier_tasks_keep_their_function(tiny, toy_tasks, run_sequence):
    """With the task id, task 1 is served by the state after stage 1, which later stages leave alone bit for bit."""
    results = run_sequence(tiny, PLAIN, toy_tasks)
    assert ProgPrompt.needs_task_id
    first = served_logits(tiny, PLAIN, results[0].state, toy_tasks[0].test)
    again = served_logits(tiny, PLAIN, StageState(results[-1].state.parts[:1]), toy_tasks[0].test)
    assert largest_difference(first, again) == 0
    assert [len(result.method.prompt()) for result in results] == [4, 8, 12]
