"""RouteLoRA: branches that know nothing of each other, sums that make the router, and where inputs go."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build, method_params
from raycl.methods.route_lora import RouteLoraParams
from raycl.state.stage_state import StageState
from raycl.tasks.task import Example
from raycl.testing.probes import (
    answer_logits,
    batch_of,
    largest_difference,
    make_method,
    same_part,
    served_logits,
    serving,
)
from tests.kit.cases import CASES
from tests.kit.routed import HARD, WIDTH, features, params_of

HIDDEN = HARD | {"features": "hidden"}


@pytest.fixture(scope="module")
def routed(tiny, toy_tasks, run_sequence):
    """The three stages of the default settings."""
    return run_sequence(tiny, HARD, toy_tasks)


@pytest.fixture(scope="module")
def apart(tiny, toy_tasks, run_sequence):
    """The three stages of `per_task`."""
    return run_sequence(tiny, CASES["per_task"].params, toy_tasks)


def test_a_part_holds_its_own_sums(routed, tiny, toy_tasks):
    """Mean, scatter and fourth powers of the training prompts' features, whatever was trained before."""
    for result, task in zip(routed, toy_tasks, strict=True):
        rows = features(tiny, task.train)
        away = rows - rows.mean(dim=0)
        held = result.part.tensors
        assert result.part.facts == {"count": len(task.train)}
        assert torch.allclose(held["feature_mean"].double(), rows.mean(dim=0), rtol=1e-6)
        scatter = (away.T @ away)[torch.ones(WIDTH, WIDTH).triu().bool()]
        assert (held["feature_scatter"] - scatter).norm() < 1e-6 * scatter.norm()
        assert held["feature_fourth"].item() == pytest.approx(away.norm(dim=1).pow(4).sum().item(), rel=1e-6)


def test_a_part_holds_the_quantiles_of_its_left_out_distances(routed, tiny, toy_tasks):
    """Each training prompt really left out, nu, target and shrinkage held fixed; quantiles to the 1 % of their bins."""
    rows = features(tiny, toy_tasks[0].train)
    count = len(rows)
    scatter = (rows - rows.mean(dim=0)).T @ (rows - rows.mean(dim=0))
    nu, delta = count - 1, WIDTH / (count - 1 + WIDTH)
    target = delta * scatter.trace() / nu / WIDTH * torch.eye(WIDTH, dtype=torch.float64)
    distances = []
    for index in range(count):
        rest = torch.cat([rows[:index], rows[index + 1 :]])
        away = rest - rest.mean(dim=0)
        covariance = (1 - delta) * (away.T @ away) / nu + target
        apart = rows[index] - rest.mean(dim=0)
        distances.append((apart @ torch.linalg.solve(covariance, apart)).item())
    held = routed[0].part.tensors["feature_distances"].tolist()
    distances.sort()
    assert len(held) == 101 and held == sorted(held)
    for percent in (0, 25, 50, 99, 100):
        place = max(0, -(-percent * count // 100) - 1)
        assert distances[place] * 0.999999 <= held[percent] <= 1.0101 * distances[place]


def test_a_branch_is_that_of_per_task(routed, apart):
    """Trained alone, from the bare backbone, with the cross-entropy only: bit for bit the same branch."""
    for ours, theirs in zip(routed, apart, strict=True):
        assert same_part(replace(ours.part, tensors={}, facts={}), replace(theirs.part, facts={}))


@pytest.mark.parametrize("settings", [{}, {"features": "hidden"}, {"region": "text"}, {"shrinkage": "ledoit_wolf"}])
def test_inputs_go_to_their_own_tasks(settings, tiny, toy_tasks, run_sequence):
    """The toy tasks share no word: every test input's route is its task, almost surely, with a runner-up."""
    state = run_sequence(tiny, HARD | settings, toy_tasks, epochs=1)[-1].state
    with serving(tiny, HARD | settings, state) as method:
        for task in toy_tasks:
            method.condition(batch_of(tiny, task.test))
            routes = method.routes()
            assert [route.task for route in routes] == [task.name] * len(task.test)
            assert all(route.probability > 0.9 and route.known for route in routes)
            others = {one.name for one in toy_tasks} - {task.name}
            assert all(route.runner_up in others for route in routes)
            assert all(route.probability + route.runner_up_probability <= 1 + 1e-9 for route in routes)


@pytest.mark.parametrize("params", [HARD, HIDDEN])
def test_the_right_branch_gives_the_logits_of_per_task(params, tiny, toy_tasks, run_sequence, apart):
    """Served after the last stage, every task has bit for bit the logits of its own model."""
    state = run_sequence(tiny, params, toy_tasks)[-1].state
    for task, alone in zip(toy_tasks, apart, strict=True):
        ours = served_logits(tiny, params, state, task.test)
        theirs = served_logits(tiny, CASES["per_task"].params, alone.state, task.test)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_so_it_does_in_bf16(tiny_bf16, toy_tasks, run_sequence):
    """Also where base weights are bf16 and products are autocast, and with a scale that is no power of two."""
    params = HARD | {"alpha": 10.0}
    state = run_sequence(tiny_bf16, params, toy_tasks[:2], epochs=1)[-1].state
    one = {"name": "per_task"} | {name: params[name] for name in ("rank", "alpha", "dropout")}
    for index, task in enumerate(toy_tasks[:2]):
        ours = served_logits(tiny_bf16, params, state, task.test)
        own = StageState((replace(state.parts[index], tensors={}),))
        assert all(torch.equal(a, b) for a, b in zip(ours, served_logits(tiny_bf16, one, own, task.test), strict=True))


def test_a_mixed_batch_answers_each_input_by_its_own_branch(routed, tiny, toy_tasks):
    """Inputs of three tasks in one batch have the logits that they have among their own."""
    mixed = [example for group in zip(*(task.test for task in toy_tasks), strict=True) for example in group]
    together = served_logits(tiny, HARD, routed[-1].state, mixed)
    for index, task in enumerate(toy_tasks):
        own = served_logits(tiny, HARD, routed[-1].state, task.test)
        assert largest_difference(together[index::3], own) <= 4e-6 * max(row.abs().max().item() for row in own)


def test_the_order_of_the_parts_does_not_matter(routed, tiny, toy_tasks):
    """The same parts in any order give the same logits, bit for bit, and the same probabilities."""
    parts = routed[-1].state.parts
    for task in toy_tasks:
        inputs = batch_of(tiny, task.test)
        found = []
        for order in permutations(parts):
            with serving(tiny, HARD, StageState(order)) as method:
                found.append((answer_logits(tiny, method, inputs), method.routes()))
        for logits, routes in found[1:]:
            assert all(torch.equal(one, other) for one, other in zip(logits, found[0][0], strict=True))
            for one, other in zip(routes, found[0][1], strict=True):
                assert one.task == other.task and one.probability == pytest.approx(other.probability, abs=1e-6)


def test_a_removed_task_leaves_nothing(routed, tiny, toy_tasks, run_stage):
    """The third task's part is bit for bit that of a sequence that never had the second, or that begins with it."""
    first, second, third = routed[-1].state.parts
    never = run_stage(tiny, HARD, [toy_tasks[0], toy_tasks[2]], StageState((first,)))
    assert same_part(never.part, third)
    assert same_part(run_stage(tiny, HARD, [toy_tasks[2]]).part, third)
    assert not same_part(second, third)
    for task in toy_tasks:
        removed = served_logits(tiny, HARD, StageState((first, third)), task.test)
        without = served_logits(tiny, HARD, never.state, task.test)
        assert all(torch.equal(one, other) for one, other in zip(removed, without, strict=True))


@pytest.mark.parametrize("init", ["random", "nearest"])
def test_a_branch_may_start_from_the_nearest_task(init, routed, tiny, toy_tasks, run_stage):
    """After tasks 1 and 2, a task of task 1's words starts from task 1's branch, if the settings say so; else from B = 0."""
    words = replace(toy_tasks[0], name="again", train=toy_tasks[0].train[:10])
    result = run_stage(tiny, HARD | {"init": init}, [*toy_tasks[:2], words], routed[1].state)
    branch = routed[0].part.branch
    for path in branch.a:
        start = result.before[f"model.{path}.lora_A.branch.weight"], result.before[f"model.{path}.lora_B.branch.weight"]
        if init == "nearest":
            assert torch.equal(start[0], branch.a[path]) and torch.equal(start[1], branch.b[path])
        else:
            assert not torch.equal(start[0], branch.a[path]) and not start[1].any()


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_what_is_unlike_every_task_may_go_to_the_base_model(routing, routed, tiny, toy_task, toy_tasks):
    """Inputs of a task that was never trained have bit for bit the bare model's logits; a task's own keep their branch."""
    params = HARD | {"unknown": "base", "unknown_quantile": 1.0, "routing": routing}
    strange = toy_task(5, spread=3).test
    bare = answer_logits(tiny, None, batch_of(tiny, strange))
    ours = served_logits(tiny, params, routed[-1].state, strange)
    assert all(torch.equal(one, other) for one, other in zip(ours, bare, strict=True))
    asked = params | {"unknown": "nearest"}
    assert largest_difference(served_logits(tiny, asked, routed[-1].state, strange), bare) > 0.01
    with serving(tiny, params, routed[-1].state) as method:
        method.condition(batch_of(tiny, [*strange, *toy_tasks[1].test]))
        known = [route.known for route in method.routes()]
    assert known == [False] * len(strange) + [True] * len(toy_tasks[1].test)


def test_the_quantile_is_the_share_of_fresh_inputs_that_pass(tiny, toy_task, run_stage):
    """Inputs of the task that were not trained on: of 60 about as many pass as the quantile says."""
    task = toy_task(1, distinct=120, repeats=1, words=6, spread=4)
    fresh, known = task.train[60:], replace(task, train=task.train[:60])
    state = run_stage(tiny, HARD, [known], epochs=1).state
    for quantile in (0.1, 0.5, 0.9):
        with serving(tiny, HARD | {"unknown": "base", "unknown_quantile": quantile}, state) as method:
            method.condition(batch_of(tiny, fresh))
            passed = sum(route.known for route in method.routes()) / len(fresh)
        assert passed == pytest.approx(quantile, abs=0.15)


def test_soft_routing_mixes_by_the_probabilities(tiny, toy_tasks, run_sequence):
    """Two tasks of the same inputs have 0.5 each, and the served model is that of IncLoRA's branches, weighed by that."""
    twins = [toy_tasks[0], replace(toy_tasks[0], name="twin")]
    params = HARD | {"routing": "soft"}
    state = run_sequence(tiny, params, twins)[-1].state
    with serving(tiny, params, state) as method:
        method.condition(batch_of(tiny, twins[0].test))
        for route in method.routes():
            assert {route.task, route.runner_up} == {twins[0].name, "twin"}
            assert (route.probability, route.runner_up_probability) == pytest.approx((0.5, 0.5), abs=1e-6)
    mixed = CASES["inc_lora"].params | {"mix": [0.5, 0.5]}
    plain = StageState(tuple(replace(part, tensors={}) for part in state.parts))
    method = build(method_params("inc_lora").model_validate(mixed), StageInfo(2, 2, "twin", 0))
    method.serve(tiny.backbone, plain)
    theirs = answer_logits(tiny, method, batch_of(tiny, twins[0].test))
    method.remove()
    ours = served_logits(tiny, params, state, twins[0].test)
    assert largest_difference(ours, theirs) <= 4e-6 * max(row.abs().max().item() for row in theirs)


def test_a_users_temperature_softens(routed, tiny, toy_tasks):
    """The hotter, the less sure; hard routing's branches and probabilities do not read it."""
    chances = {}
    for routing in ("hard", "soft"):
        for temperature in (None, 1.0, 50.0):
            params = HARD | {"routing": routing, "temperature": temperature}
            with serving(tiny, params, routed[-1].state) as method:
                method.condition(batch_of(tiny, toy_tasks[0].test))
                chances[routing, temperature] = method.routes()[0].probability
    assert chances["soft", 50.0] < chances["soft", 1.0]
    assert chances["hard", 50.0] == chances["hard", 1.0] == chances["hard", None]


def test_the_text_region_does_not_see_the_instruction(tiny, toy_tasks, run_sequence):
    """Prompts with one text and other heads and tails have the same chances, and with `prompt` others."""
    texts = [replace(example, head="t4head t4w1 ", tail=" t4w2") for example in toy_tasks[0].test]
    for region, alike in (("text", True), ("prompt", False)):
        params = HARD | {"region": region, "routing": "soft", "temperature": 30.0}
        state = run_sequence(tiny, params, toy_tasks[:2], epochs=1)[-1].state
        with serving(tiny, params, state) as method:
            seen = []
            for examples in (toy_tasks[0].test, texts):
                method.condition(batch_of(tiny, examples))
                seen.append([route.probability for route in method.routes()])
        assert (seen[0] == seen[1]) == alike


def test_a_prompt_without_a_text_is_pooled_as_a_whole(tiny, routed):
    """An empty body leaves nothing to pool; the prompt stands in."""
    with serving(tiny, HARD | {"region": "text"}, routed[-1].state) as method:
        method.condition(batch_of(tiny, [Example("0", "t1head t1w1 ", "", "t1tail", ("good",))]))
        assert method.routes()[0].task == "toy1"


def test_two_workers_add_up_to_one(tiny, toy_tasks):
    """Each with half of the rows, in batches with other padding: mean and scatter agree to 1e-10."""
    rows = [*toy_tasks[0].train, *toy_tasks[2].train]

    def moments(*batches):
        method = make_method(HARD)
        method.install(tiny.backbone, StageState())
        found = method.collect("before")
        for batch in batches:
            method.condition(batch_of(tiny, batch))
        method.remove()
        return found

    whole = moments(rows[:20], rows[20:])
    left, right = moments(rows[0::2]), moments(rows[1:9:2], rows[9::2])
    assert whole.keys() == left.keys() == right.keys() and len(whole) == 2
    for name, one in whole.items():
        assert (left[name].total + right[name].total - one.total).norm() < 1e-10 * one.total.norm()
        assert left[name].count + right[name].count == one.count == len(rows)


def test_routing_is_in_the_keys_of_scores_and_of_no_stage():
    """Each setting where it acts, and only there."""
    plain = params_of()
    for change in ({"routing": "soft"}, {"shrinkage": "ledoit_wolf"}, {"unknown": "base"}):
        assert params_of(**change).at(2) == plain.at(2)
        assert params_of(**change).serving() != plain.serving()
    assert params_of(temperature=3.0).serving() == params_of(unknown_quantile=0.5).serving() == plain.serving()
    assert params_of(routing="soft", temperature=3.0).serving() != params_of(routing="soft").serving()
    assert params_of(unknown="base", unknown_quantile=0.5).serving() != params_of(unknown="base").serving()
    assert params_of(features="hidden", layer=1).at(1) != params_of(features="hidden").at(1)
    assert params_of(layer=1).at(1) == plain.at(1) and params_of(region="text").at(1) != plain.at(1)
    assert params_of(init="nearest").at(1) == plain.at(1) != params_of(init="nearest").at(2)


def test_a_router_that_saw_no_inputs_says_so(routed, tiny, toy_tasks):
    """A forward pass without `condition` is a mistake, and while training nothing is routed."""
    with serving(tiny, HARD, routed[-1].state) as method:
        assert method.routes() is None
        with pytest.raises(RuntimeError, match="must be conditioned"):
            tiny.backbone.model(torch.tensor([[4]]), labels=torch.tensor([[4]]))
    method = make_method(HARD)
    method.install(tiny.backbone, StageState())
    method.condition(batch_of(tiny, toy_tasks[0].test))
    assert method.routes() is None
    method.remove()


def test_settings_of_families_are_in_keys_only_where_they_act() -> None:
    """They came after the method: stages of older versions keep their keys."""
    plain = RouteLoraParams(name="route_lora")
    assert not {"families", "family_below"} & plain.keyed(1).keys()
    found = RouteLoraParams(name="route_lora", families="merge", family_below=0.8).keyed(1)
    assert (found["families"], found["family_below"]) == ("merge", 0.8)
