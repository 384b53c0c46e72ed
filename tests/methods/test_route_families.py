"""Families of RouteLoRA: who is one, and what a branch is merged to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raycl.adapters.gaussian_router import GaussianRouter, TaskSums, packed
from raycl.adapters.matrix_gain import merged
from raycl.state.stage_state import StageState
from raycl.testing.probes import make_method, same_part, served_logits
from tests.kit.cases import CASES
from tests.kit.routed import HARD, features, params_of

FAMILIES = HARD | {"families": "merge"}


def test_tasks_that_are_told_apart_are_no_family(tiny, toy_tasks, run_sequence):
    """Branches as they were trained, from a fresh start, and beside them what a later member would need."""
    results, routed = (run_sequence(tiny, params, toy_tasks) for params in (FAMILIES, HARD))
    assert same_part(replace(results[0].part, tensors={}, facts={}), replace(routed[0].part, tensors={}, facts={}))
    for result, plain in zip(results, routed, strict=True):
        ours = result.part
        gains = {name for name in ours.tensors if name.startswith("gain/")}
        assert gains == {f"gain/{path}" for path in ours.branch.b}
        assert all(torch.equal(ours.tensors[name], value) for name, value in plain.part.tensors.items())
        assert ours.facts == plain.part.facts | {"family": ours.task}
        assert result.method.measures().get("told_apart", 1.0) > 0.99
        for path, b in ours.branch.b.items():
            assert torch.equal(b, result.after[f"model.{path}.lora_B.branch.weight"])


def test_a_task_with_the_inputs_of_another_goes_on_from_its_branch_and_is_merged(tiny, toy_tasks, run_sequence):
    """The inputs of the first task with other answers, after a second task: only B trains, from the family's branch, and is
    merged by what both saw (about the mean); both tasks are answered by it, and the one between by its own."""
    first, between, _ = toy_tasks
    answers = dict(zip(first.labels, reversed(first.labels), strict=True))
    other = tuple(replace(example, answers=(answers[example.answers[0]],)) for example in first.train)
    third = replace(first, name="again", train=other)
    results = run_sequence(tiny, FAMILIES, [first, between, third])
    one, two, three = (result.part for result in results)
    assert [part.facts["family"] for part in (one, two, three)] == ["toy1", "toy2", "toy1"]
    assert results[2].method.measures()["told_apart"] == pytest.approx(0.5, abs=0.01)
    assert all(name.endswith("lora_B.branch.weight") for name in results[2].trainable)
    for path, b in three.branch.b.items():
        trained = results[2].after[f"model.{path}.lora_B.branch.weight"]
        assert torch.equal(three.branch.a[path], one.branch.a[path])
        earlier, both = (part.tensors[f"gain/{path}"] for part in (one, three))
        expected = merged(one.branch.b[path], trained, both - earlier, earlier)
        assert torch.allclose(b, expected.float(), atol=1e-5)
        step = trained - one.branch.b[path]
        # A T5's decoder reads the answers, which differ.
        assert "decoder" in path or (b - one.branch.b[path] - step / 2).norm() < 0.3 * step.norm()
    params = CASES["per_task"].params
    for task, branch in ((first, three.branch), (between, two.branch)):
        ours = served_logits(tiny, FAMILIES, results[2].state, task.test)
        alone = StageState((replace(three, tensors={}, branch=branch),))
        theirs = served_logits(tiny, params, alone, task.test)
        assert all(torch.equal(mine, one) for mine, one in zip(ours, theirs, strict=True))


def test_families_make_a_stage_depend_on_those_before():
    """So it is no longer found in other orders, and the threshold counts from the second stage on."""
    method = type(make_method(HARD))
    assert method.alone(params_of()) and not method.alone(params_of(families="merge"))
    assert params_of(families="merge").at(1) != params_of().at(1) == params_of(family_below=0.8).at(1)
    strict = params_of(families="merge", family_below=0.8)
    assert strict.at(1) == params_of(families="merge").at(1) and strict.at(2) != params_of(families="merge").at(2)


def test_the_share_that_is_told_apart_is_that_of_left_out_inputs(tiny, toy_task):
    """The closed form against really leaving each input out of a router of two tasks, which are far from Gaussian."""
    tasks = [toy_task(number, distinct=40, repeats=1, words=8, spread=3) for number in (1, 2)]
    draw = torch.Generator().manual_seed(0)
    plain = [features(tiny, task.train) for task in tasks]
    gap = (plain[0].mean(dim=0) - plain[1].mean(dim=0)).norm()
    rows = [one + gap / 2 * torch.randn(one.shape, generator=draw, dtype=torch.float64) for one in plain]
    router = GaussianRouter([sums(one) for one in rows])
    share = router.told_apart().mean().item()
    right = []
    for own, other in ((0, 1), (1, 0)):
        for index in range(len(rows[own])):
            rest = torch.cat([rows[own][:index], rows[own][index + 1 :]])
            pair = GaussianRouter([sums(rest), sums(rows[other])])
            distances = pair.distances(rows[own][index][None])[0]
            right.append(float(distances[0] < distances[1]))
    assert 0.55 < share < 0.99
    assert share == pytest.approx(sum(right) / len(right), abs=0.08)


def sums(rows: torch.Tensor) -> TaskSums:
    """What a task keeps of features (n, D)."""
    away = rows - rows.mean(dim=0)
    return TaskSums(rows.mean(dim=0), len(rows), packed(away.T @ away))
