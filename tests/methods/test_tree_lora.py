"""TreeLoRA: bandit, tree and pull by hand, and what a stage remembers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from raycl.adapters.task_tree import Bandit, choose, distance, groups
from raycl.methods.common.base import Gradients
from raycl.methods.tree_lora import MEAN_A, MEAN_GRADIENT, TreeLora, tree_vectors
from raycl.state.stage_state import StagePart, StageState
from raycl.testing.probes import make_method, same_part
from raycl.testing.ranks import Job, Killed, Memory, run_one
from tests.kit.cases import CASES

PARAMS = CASES["tree_lora"].params
GRADIENT = CASES["tree_lora_gradient"].params


def by_hand(means, current, params=PARAMS, kind=MEAN_A):
    """TreeLoRA with layers of one A each (`current`, by layer), and earlier tasks with these means."""
    method = make_method(params, len(means) + 1)
    downs = [torch.nn.Parameter(torch.tensor([value])) for value in current]
    method.layers = {str(index): SimpleNamespace(down=down) for index, down in enumerate(downs)}
    method.trainee = SimpleNamespace(branches=SimpleNamespace(layers=method.layers))
    method.kind = kind
    method.sums = {f"{kind}{index}": torch.zeros_like(down) for index, down in enumerate(downs)}
    method.sums |= {f"{MEAN_A}{index}": torch.zeros_like(down) for index, down in enumerate(downs)}
    method.earlier = [
        {f"{name}{index}": torch.tensor([value]) for index, value in enumerate(mean) for name in (MEAN_A, kind)}
        for mean in means
    ]
    method.done, method.choice, method.at = torch.zeros(()), None, None
    method.nodes = [list(range(len(means)))]
    method.bandit = Bandit(len(means), len(downs))
    return method, downs


def step_at(progress, loss=2.0):
    """A training step."""
    return SimpleNamespace(progress=progress, loss=torch.tensor(loss, requires_grad=True))


def test_bounds_by_hand():
    """Layer 0 saw arm 0 at 0.2 and 0.4: 0.3 - sqrt(log(2 * 10 * 3 * 4) / (4 + 1e-5)); arms never seen come first."""
    bandit = Bandit(2, 2)
    bandit.observe(torch.tensor([0, 1]), torch.tensor([0.2, 0.9]))
    bandit.observe(torch.tensor([0, 1]), torch.tensor([0.4, 0.5]))
    bounds = bandit.bounds(2, 10)
    width = math.sqrt(math.log(240))
    assert bounds[0, 0].item() == pytest.approx(0.3 - width / math.sqrt(4 + 1e-5))
    assert bounds[1, 1].item() == pytest.approx(0.7 - width / math.sqrt(4 + 1e-5))
    assert bounds[1, 0].item() == pytest.approx(-width / math.sqrt(1e-5), rel=1e-4)
    assert bandit.counts.tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_the_tree_by_hand():
    """Layer 0: vectors 1, 2, 3, 4 have mean 2.5 and similarities 2.5, 5, 7.5, 10, whose lower median is 5; layer 1 splits
    the left three at its own median."""
    vectors = [[torch.tensor([a]), torch.tensor([b])] for a, b in ((1.0, 9.0), (2.0, 1.0), (3.0, 2.0), (4.0, 6.0))]
    assert groups(vectors, 0) == [[0, 1, 2, 3]]
    assert groups(vectors, 1) == [[1, 2, 3], [0]]
    assert groups(vectors, 2) == [[2, 3], [1], [0]]
    assert groups(vectors, 9) == groups(vectors, 2)
    assert groups([vectors[0]] * 3, 1) == [[0], [1, 2]]
    assert groups([], 1) == [[]]


def test_choices_by_hand():
    """Arm 1 is best over all layers; the node of arms 1 and 2 excludes arm 0, though it is best in layer 1."""
    bounds = torch.tensor([[5.0, -9.0, 8.0], [-4.0, 2.0, -4.0], [1.0, 1.0, -5.0]])
    assert choose(bounds, [[0], [1, 2]], None).tolist() == [1, 2, 2]
    assert choose(bounds, [[0, 1, 2]], None).tolist() == [1, 0, 2]


def test_draws_prefer_low_bounds():
    """softmax(-bound / range): over many layers the lower of two bounds is drawn in a share of e / (e + 1)."""
    bounds = torch.tensor([[0.0], [0.001]]).repeat(1, 4000)
    generator = torch.Generator().manual_seed(0)
    share = (choose(bounds, [[0, 1]], generator) == 0).float().mean().item()
    assert share == pytest.approx(math.e / (math.e + 1), abs=0.02)
    again = [choose(bounds, [[0, 1]], torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


def test_distances_by_hand():
    """|1 - 3| + |-2 - 0| = 4; relative to 3 + 3."""
    left, right = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0])
    assert distance(left, right, False).item() == 4.0
    assert distance(left, right, True).item() == pytest.approx(2 / 3)
    assert distance(torch.zeros(2), torch.zeros(2), True).item() == 0.0


def test_the_pull_by_hand():
    """S = <A_0, m_0> + <A_1, m_1> = 3 + 8 = 11: raw = -2 * 0.25, gradient -0.5 m / 11; a negative S is pulled up too. Layers
    may differ in width."""
    for sign in (1.0, -1.0):
        method, downs = by_hand([[[3.0, 0.0], [0.0, 4.0, 0.0]]], [[sign, 1.0], [7.0, 2.0 * sign, 5.0]])
        step = step_at(0.25)
        term = method.penalties(step)["similarity"]
        assert term.weight == 0.5
        assert term.raw.item() == pytest.approx(-0.5 * sign)
        term.raw.backward()
        assert step.loss.grad is None and not any(total.requires_grad for total in method.sums.values())
        assert torch.allclose(downs[0].grad, torch.tensor([[-0.5 * 3 / 11, 0.0]]))
        assert torch.allclose(downs[1].grad, torch.tensor([[0.0, -0.5 * 4 / 11, 0.0]]))
    assert method.penalties(step_at(0.0))["similarity"].raw.item() == 0.0


def test_one_choice_and_one_observation_per_step():
    """Micro-batches of one step share it; every arm is tried once, then the nearest is chosen most."""
    method, _ = by_hand([[[0.0, 4.0]], [[2.0, 0.0]]], [[2.0, 0.1]], PARAMS | {"tree_levels": 0})
    for step in range(60):
        for _ in range(2):
            method.penalties(step_at(step / 60))
    assert method.done.item() == 60 and method.bandit.counts.sum() == 60
    assert method.bandit.counts[:, 0].min() > 0
    assert method.bandit.counts[1, 0] > 2 * method.bandit.counts[0, 0]
    assert method.measures()["chosen/2"] == pytest.approx(method.bandit.counts[1, 0].item() / 60)
    assert torch.allclose(method.sums[f"{MEAN_A}0"] / 60, torch.tensor([[2.0, 0.1]]))
    assert method.bandit.totals[1, 0].item() == pytest.approx(method.bandit.counts[1, 0].item() * 0.1 / 4.1, rel=1e-4)


def test_a_draw_is_that_of_the_step():
    """With choice=draw each step draws anew, by run, stage and step; otherwise the first of equal bounds is taken."""
    arms = [[[1.0]] * 16, [[2.0]] * 16, [[3.0]] * 16]
    for choice in ("draw", "least"):
        method, _ = by_hand(arms, [[1.0]] * 16, PARAMS | {"choice": choice, "tree_levels": 0})
        for step in range(2):
            generator = method.info.generator(f"choice {step}") if choice == "draw" else None
            expected = choose(method.bandit.bounds(step, 8 if step else 1), method.nodes, generator)
            method.penalties(step_at(step / 8))
            assert torch.equal(method.choice, expected)
        assert (len(set(expected.tolist())) > 1) == (choice == "draw")


def test_bounds_know_how_long_the_stage_is():
    """At step k of N the progress is k / N, rounded (9 / (9 / 14) is 13.99...); at the first one N does not matter."""
    method, _ = by_hand([[[0.0, 4.0]]], [[2.0, 0.1]])
    heard, bounds = [], method.bandit.bounds
    method.bandit.bounds = lambda step, steps: heard.append((step, steps)) or bounds(step, steps)
    for step in range(14):
        method.penalties(step_at(step / 14))
    assert heard == [(0, 1), *((step, 14) for step in range(1, 14))]


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_tree_has_as_many_levels_as_it_is_told(tiny, toy_tasks, run_stage, levels):
    """Over what each of three earlier tasks changed: all together, halves, or quarters of it."""
    part = run_stage(tiny, PARAMS, toy_tasks, epochs=1, batch_size=16).part
    means = {name: value for name, value in part.tensors.items() if name.startswith(MEAN_A)}
    parts = [replace(part, tensors={name: factor * a for name, a in means.items()}) for factor in (1.0, 3.0, 8.0)]
    method = make_method(PARAMS | {"tree_levels": levels}, 4)
    method.install(tiny.backbone, StageState(tuple(parts)))
    method.remove()
    changes = [[factor * a for a in means.values()] for factor in (1.0, 2.0, 5.0)]
    assert method.nodes == groups(changes, levels)
    assert sorted(map(len, method.nodes)) == [[3], [1, 2], [1, 1, 1]][levels]


def test_gradients_describe_the_task_on_request():
    """With vector=gradient the bandit compares mean gradients, once per step, after the backward pass."""
    method, downs = by_hand([[[1.0, 0.0]]], [[5.0, 5.0]], GRADIENT, MEAN_GRADIENT)
    for step, gradient in enumerate(([1.0, 1.0], [1.0, 3.0])):
        method.penalties(step_at(step / 2))
        assert method.bandit.counts.sum() == step
        method.gradients(Gradients(lambda _, g=gradient: torch.tensor([g]), None, None))
    assert method.sums[f"{MEAN_GRADIENT}0"].tolist() == [[2.0, 4.0]]
    assert method.bandit.totals.item() == pytest.approx(1 / 3 + 2 / 4)
    assert method.bandit.counts.item() == 2
    assert downs[0].grad is None


def test_a_part_remembers_the_means(tiny, toy_tasks, run_stage):
    """After one step the mean of A is its start, not where it ended; the mean gradient is that of this step."""
    for params in (PARAMS, GRADIENT):
        result = run_stage(tiny, params, toy_tasks, epochs=1, batch_size=16)
        for path in result.part.branch.a:
            begun = result.before[f"model.{path}.lora_A.branch.weight"]
            assert torch.equal(result.part.tensors[MEAN_A + path], begun)
            # B = 0 at the first step, so A has no gradient yet.
            assert params is PARAMS or not result.part.tensors[MEAN_GRADIENT + path].any()
        assert {name.partition("/")[0] for name in result.part.tensors} == (
            {"mean_a"} if params is PARAMS else {"mean_a", "gradient"}
        )


def test_first_stage_and_no_weight_are_sin_lora(tiny, toy_tasks, run_sequence):
    """Without a pull, all branches are SinLoRA's bit for bit."""
    ours = run_sequence(tiny, PARAMS | {"weight": 0.0}, toy_tasks[:2])
    plain = run_sequence(tiny, CASES["sin_lora"].params, toy_tasks[:2])
    pulled = run_sequence(tiny, PARAMS, toy_tasks[:2])
    for index, (mine, theirs) in enumerate(zip(ours, plain, strict=True)):
        assert same_part(StagePart(mine.part.task, mine.part.branch), theirs.part)
        assert same_part(pulled[index].part, mine.part) == (index == 0)


@pytest.mark.parametrize(
    "params", [PARAMS | {"choice": "draw"}, GRADIENT | {"choice": "least"}], ids=["draw", "gradient"]
)
def test_a_killed_third_stage_goes_on_where_it_was(tiny, toy_tasks, run_sequence, params):
    """With two earlier tasks to choose from, what the bandit saw and the draws survive a mid-stage checkpoint."""
    state = run_sequence(tiny, params, toy_tasks[:2])[-1].state
    settings = {"lr": 1e-2, "epochs": 4, "batch_size": 8}
    whole, _ = run_one(tiny, Job(params, settings), toy_tasks, state)
    memory = Memory()
    settings |= {"checkpoint_every": 3}
    with pytest.raises(Killed):
        run_one(tiny, Job(params, settings), toy_tasks, state, partial=memory)
    resumed, _ = run_one(tiny, Job(params, settings), toy_tasks, state, partial=memory)
    assert same_part(resumed, whole)


def test_the_tree_sees_changes_of_weights_and_gradients_as_they_are():
    """Of means 1, 3, 8 the tree gets 1, 2, 5."""
    means = [[torch.tensor(1.0)], [torch.tensor(3.0)], [torch.tensor(8.0)]]
    assert tree_vectors(means, changes=True) == [[1.0], [2.0], [5.0]]
    assert tree_vectors(means, changes=False) == means


def test_published_settings():
    """Rank 8 everywhere, cosine from 1e-4 on decoder-only models."""
    assert TreeLora.settings("llama", "std-1")["train"]["schedule"] == "cosine"
    assert TreeLora.settings("t5", "sni-1")["method"]["rank"] == 8
