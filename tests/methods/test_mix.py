"""User-set weights of summed branches: in the served model and in a score's key, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from raycl.errors import SpecError
from raycl.methods.registry import method_params
from raycl.sequence.plan import cell_recipe
from raycl.spec import parse
from raycl.state.stage_state import StageState
from raycl.testing.probes import largest_difference, make_method, same_part, served_logits
from tests.kit.cases import CASES

METHODS = ("inc_lora", "o_lora", "inf_lora")
MIX = [2.0, 0.5, -1.0]


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_change_nothing_are_no_setting_of_a_score(name):
    """None, and 1 for every branch; one other value counts, with the whole list."""
    for mix, serving in ((None, {}), ([1.0, 1.0], {}), ([1.0, 0.5], {"mix": [1.0, 0.5]})):
        assert method_params(name).model_validate({"name": name, "mix": mix}).serving() == serving


@pytest.fixture(scope="module", params=METHODS)
def sequence(request, tiny, toy_tasks, run_sequence):
    """A method's parameters and its state after three tasks."""
    params = CASES[request.param].params
    return params, run_sequence(tiny, params, toy_tasks)


def test_the_served_model_weighs_each_branch(sequence, tiny, toy_tasks):
    """Weights c_i on the branches are weights c_i on their B_i, after every stage; weights of 1 change nothing
    (the plain sum is folded into the base, so but for round-off)."""
    params, results = sequence
    for result in results:
        state, rows = result.state, toy_tasks[0].test
        scaled = [
            replace(part, branch=replace(part.branch, b={path: weight * b for path, b in part.branch.b.items()}))
            for part, weight in zip(state.parts, MIX, strict=False)
        ]
        mixed = served_logits(tiny, params | {"mix": MIX}, state, rows)
        plain = served_logits(tiny, params, state, rows)
        assert largest_difference(mixed, served_logits(tiny, params, StageState(tuple(scaled)), rows)) <= 1e-4
        assert largest_difference(mixed, plain) > 1e-2
        of_one = served_logits(tiny, params | {"mix": [1.0] * 3}, state, rows)
        assert largest_difference(of_one, plain) <= 1e-5 * max(row.abs().max().item() for row in plain)


def test_a_branch_of_weight_0_is_not_there(sequence, tiny, toy_tasks):
    """(1, 1, 0) after three stages is the model after two."""
    params, results = sequence
    rows = toy_tasks[0].test
    without = served_logits(tiny, params | {"mix": [1.0, 1.0, 0.0]}, results[2].state, rows)
    assert largest_difference(without, served_logits(tiny, params, results[1].state, rows)) <= 1e-4


def test_training_does_not_see_the_weights(sequence, tiny, toy_tasks, run_stage):
    """They are in no stage's key, and a stage trained with them set is the same, bit for bit."""
    params, results = sequence
    mixed = method_params(params["name"]).model_validate(params | {"mix": MIX})
    assert mixed.at(3) == method_params(params["name"]).model_validate(params).at(3)
    part = run_stage(tiny, params | {"mix": MIX}, toy_tasks, results[1].state).part
    assert same_part(part, results[2].part)


@pytest.mark.parametrize("name", METHODS)
def test_scores_under_other_weights_are_other_scores(name, toy_tasks):
    """The weights are in a score's key, unless they change nothing."""

    def recipe(**extra):
        values = {"order": "toy", "tasks": ["a", "b", "c"], "method": {"name": name, **extra}}
        return cell_recipe(parse(values, method_params), toy_tasks[0], "state")

    assert recipe(mix=MIX)["serving"] == {"mix": MIX}
    assert "serving" not in recipe() and recipe() == recipe(mix=[1.0, 1.0, 1.0])
    with pytest.raises(SpecError, match=r"method\.mix: a list of 2 values; .* 3 values"):
        recipe(mix=[1.0, 2.0])


def test_another_number_of_weights_is_refused(sequence, tiny):
    """Served outside of a checked spec, too, and the backbone is clean afterwards."""
    params, results = sequence
    method = make_method(params | {"mix": [1.0, 2.0]}, 3)
    with pytest.raises(ValueError, match=r"method\.mix: 2 values; wanted: .* 3"):
        method.serve(tiny.backbone, results[2].state)
    method.remove()


@pytest.mark.parametrize("over", ["o_lora", "inf_lora"])
def test_gated_branches_have_no_such_weights(over):
    """GainLoRA's gates weigh its branches."""
    with pytest.raises(ValidationError, match="mix"):
        make_method({"name": "gain_lora", "over": over, "mix": MIX})
