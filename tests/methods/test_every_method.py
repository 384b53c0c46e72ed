"""What must hold for every method: the shared matrix of `raycl.testing`, and what raycl's own methods declare beyond it."""

from __future__ import annotations

import pytest
import torch

from raycl.methods.registry import METHODS, method_params
from raycl.testing.case import ADAPTED
from raycl.testing.matrix import MethodMatrix
from raycl.testing.probes import same_part, tensors_of
from tests.kit.cases import CASES, HIDDEN, RANK

WIDTH = 48
WITH_BRANCH = [name for name, case in CASES.items() if case.branch]


class TestEveryMethod(MethodMatrix):
    """The shared matrix, over all cases and both families (`conftest.py`)."""


def test_every_registered_method_has_a_case():
    """A method without a line in CASES would be untested."""
    assert {case.params["name"] for case in CASES.values()} == set(METHODS)


def test_old_branches_and_gates_stay_in_the_model(trained, case):
    """Beside the current branch stand the frozen ones, and a gate for every stage so far."""
    for stage, result in enumerate(trained, start=1):
        if stage > 1 and case.frozen_branches:
            assert any(name.endswith("frozen_a") for name in result.before)
        gates = {name.split(".")[2] for name in result.before if name.startswith("extra.gates.")}
        assert gates == ({str(index) for index in range(stage)} if "g" in case.keeps else set())


def test_the_state_grows_by_the_formula(trained, case, family):
    """A branch has r (d_in + d_out) numbers per module, a gate 2 h d + d, bases one column of its width per dimension."""
    filled: dict[str, int] = {}
    for result in trained if case.branch and not case.own else []:
        part = result.part
        assert sorted(part.branch.a) == ADAPTED[family]
        for path in ADAPTED[family]:
            base = result.before[f"model.{path}.base_layer.weight"]
            assert base.shape[0] != base.shape[1]
            assert (part.branch.a[path].shape, part.branch.b[path].shape) == (
                (RANK, base.shape[1]),
                (base.shape[0], RANK),
            )
        widths = {}
        if "G" in case.keeps:
            widths |= {"gate_basis/0": WIDTH, "gate_basis/1": HIDDEN, "gate_basis/2": WIDTH}
        if "L" in case.keeps:
            owners = [path for path in ADAPTED[family] if path.rsplit(".", 1)[-1].startswith("q")]
            owners += [path for path in ADAPTED[family] if path.endswith("EncDecAttention.v")]
            widths |= {f"layer_basis/{path}": WIDTH for path in owners}
        gate = {"gate/0": (HIDDEN, WIDTH), "gate/1": (WIDTH, HIDDEN), "gate/2": (1, WIDTH)} if "g" in case.keeps else {}
        assert part.tensors.keys() >= widths.keys() | gate.keys()
        assert {name: tuple(part.tensors[name].shape) for name in gate} == gate
        for name, width in widths.items():
            assert part.tensors[name].shape[0] == width
            filled[name] = filled.get(name, 0) + part.tensors[name].shape[1]
            assert filled[name] <= width
        tokens = {f"memory/{name}" for name in ("ids", "lengths")}
        dtypes = {name: torch.int32 if name in tokens else torch.float32 for name in tensors_of(part)}
        assert {name: value.dtype for name, value in tensors_of(part).items()} == dtypes


def test_first_stage_of_the_plain_methods_is_that_of_sin_lora(tiny, toy_tasks, run_stage):
    """IncLoRA, and O-LoRA without its norm term, train bit for bit SinLoRA's first branch."""
    first = run_stage(tiny, CASES["sin_lora"].params, toy_tasks).part
    for params in (CASES["inc_lora"].params, CASES["o_lora"].params | {"lambda2": 0.0}):
        assert same_part(run_stage(tiny, params, toy_tasks).part, first)
    assert not same_part(run_stage(tiny, CASES["o_lora"].params | {"lambda2": 1.0}, toy_tasks).part, first)


@pytest.mark.parametrize("case", WITH_BRANCH, indirect=True)
def test_unknown_target_modules_are_named(tiny, case, toy_tasks, run_stage):
    """Targets that the model does not have: the error names them, not what failed while cleaning up."""
    with pytest.raises(ValueError, match="no_such_module"):
        run_stage(tiny, case.params | {"targets": ["no_such_module"]}, toy_tasks)


@pytest.mark.parametrize("case", WITH_BRANCH, indirect=True)
def test_other_target_modules_are_adapted(tiny, case, family, toy_tasks, run_stage):
    """`targets` puts the branch on those modules and on no others, with their own widths."""
    name = "down_proj" if family == "llama" else "wo"
    part = run_stage(tiny, case.params | {"targets": [name]}, toy_tasks).part
    assert {path.rsplit(".", 1)[-1] for path in part.branch.a} == {name}
    rank = method_params(case.params["name"]).model_validate(case.params).branch_rank(64, WIDTH)
    assert {a.shape for a in part.branch.a.values()} == {(rank, 64)}
