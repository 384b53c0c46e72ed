"""What must hold for every method, on a decoder-only and an encoder-decoder model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from raycl.adapters.branches import adapter_config
from raycl.methods.registry import METHODS, method_class, method_params
from raycl.spec import InKeyUnlessDefault
from raycl.state.manifest import Provenance
from raycl.state.stage_state import StageState
from raycl.state.store import Store
from tests.kit.cases import (
    ADAPTED,
    CASES,
    HIDDEN,
    RANK,
    answer_logits,
    batch_of,
    expected_trainable,
    largest_difference,
    make_method,
    probe_logits,
    same_part,
    served_logits,
    serving,
    tensors_of,
)
from tests.kit.other_values import OTHER_VALUES, other_value

WIDTH = 48
WITH_BRANCH = [name for name, case in CASES.items() if case.branch]
OWN_ROWS = [name for name, case in CASES.items() if case.rows == 1]
"""Cases that train on the task's own rows and no others."""


def test_every_registered_method_has_a_case():
    """A method without a line in CASES would be untested."""
    assert {case.params["name"] for case in CASES.values()} == set(METHODS)


def test_trains_what_is_declared_and_nothing_else(trained, case, tiny, family):
    """The optimizer holds exactly the declared parameters, by name, at every stage."""
    for stage, result in enumerate(trained, start=1):
        assert result.trainable == expected_trainable(case, tiny, family, stage)


def test_what_trains_moves_and_what_is_frozen_stays(trained, case):
    """Over a stage each trainable parameter changes; base weights, old branches and old gates keep every bit."""
    for stage, result in enumerate(trained, start=1):
        assert result.before.keys() == result.after.keys()
        moved = {name for name in result.before if not torch.equal(result.before[name], result.after[name])}
        assert moved == set(result.trainable)
        if stage > 1 and case.frozen_branches:
            assert any(name.endswith("frozen_a") for name in result.before)
        gates = {name.split(".")[2] for name in result.before if name.startswith("extra.gates.")}
        assert gates == ({str(index) for index in range(stage)} if "g" in case.keeps else set())


def test_old_parts_are_handed_on_untouched(trained):
    """A later stage's state begins with the very parts of the stages before it, and they kept their bits."""
    for earlier, later in pairwise(trained):
        assert later.state.parts[:-1] == earlier.state.parts
    stacked = {name: value for name, value in trained[-1].before.items() if name.endswith("frozen_a")}
    for name, value in stacked.items():
        path = name.removeprefix("model.").removesuffix(".frozen_a")
        assert torch.equal(value, torch.cat([r.part.branch.a[path] for r in trained[:-1]]))


def test_the_part_holds_what_was_trained(trained, case):
    """What a part holds is the layers' state right after training, on exactly the trained modules."""
    for result in trained:
        if "W" in case.trains:
            held = {f"model.{name.removeprefix('weights/')}": value for name, value in result.part.tensors.items()}
            assert held.keys() >= {name for name in result.trainable if name.startswith("model.")}
            assert all(torch.equal(value, result.after[name]) for name, value in held.items() if name in result.after)
        if not case.branch or not case.serves_trained:
            continue
        for path, a in result.part.branch.a.items():
            assert torch.equal(a, result.after[f"model.{path}.lora_A.branch.weight"])
            assert torch.equal(result.part.branch.b[path], result.after[f"model.{path}.lora_B.branch.weight"])


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
        assert all(value.dtype == torch.float32 for value in tensors_of(part).values())


def test_what_a_part_holds_is_documented(trained, case):
    """`about.state` names every tensor of a part, and nothing that no part ever holds in a case of the method."""
    about = method_class(case.params["name"]).about
    for result in trained:
        kinds = {name.partition("/")[0] for name in result.part.tensors}
        assert kinds <= about.state.keys()
        assert (result.part.branch is not None) <= ("branch" in about.state)


def test_parts_come_back_from_the_store_bit_for_bit(trained, case, tiny, toy_tasks, run_stage, tmp_path):
    """Published and read, a state is the same, and the third stage run from the store equals the one run from memory."""
    store, keys = Store(str(tmp_path / "store")), []
    for stage, result in enumerate(trained[:2], start=1):
        recipe = {"stage": stage, "method": result.method.params.at(stage)}
        config = adapter_config(tiny.backbone, result.part.branch, tiny.name) if result.part.branch else None
        parent = keys[-1] if keys else None
        keys.append(store.publish(result.part, Provenance(recipe, stage, parent, config)).key)
    state = Store(str(tmp_path / "store")).read_state(keys[-1])
    for read, result in zip(state.parts, trained, strict=False):
        assert same_part(read, result.part)
    assert same_part(run_stage(tiny, case.params, toy_tasks, state).part, trained[2].part)


def test_the_seed_decides_everything(trained, case, tiny, toy_tasks, run_sequence):
    """Two runs with one seed give equal parts and losses; another seed gives others."""
    again = run_sequence(tiny, case.params, toy_tasks[:2])
    for first, second in zip(trained, again, strict=False):
        assert same_part(first.part, second.part)
        assert [r["loss"] for r in first.log] == [r["loss"] for r in second.log]
    other = run_sequence(tiny, case.params, toy_tasks[:1], seed=1)
    assert not same_part(trained[0].part, other[0].part)


def test_serving_gives_the_trained_function(trained, case, tiny, toy_tasks):
    """The published state, served, has the logits of the training module in eval mode: bit for bit, or where effective
    weights are summed up before use (gates), within a rounding of the largest logit."""
    for result in trained if case.serves_trained else []:
        logits = served_logits(tiny, case.params, result.state, toy_tasks[0].test)
        largest = max(row.abs().max().item() for row in logits)
        assert largest_difference(logits, result.probes[1]) <= case.rounding * largest
    with serving(tiny, case.params, trained[-1].state):
        assert not any(p.requires_grad for p in tiny.backbone.model.parameters())


def test_who_says_that_it_chooses_routes_every_input_and_nobody_else(trained, case, tiny, toy_tasks):
    """Routes are read back from stored predictions where the class says that there are some."""
    examples = toy_tasks[0].test
    with serving(tiny, case.params, trained[-1].state) as method:
        method.condition(batch_of(tiny, examples))
        routes = method.routes()
    assert (routes is not None) == type(method).chooses
    assert routes is None or len(routes) == len(examples)


def test_a_stage_starts_from_the_function_of_the_one_before(trained, case, tiny, toy_tasks):
    """B_t = 0 (or, for SinLoRA, the copied branch): the first step sees the logits the last stage ended with."""
    for earlier, later in pairwise(trained) if case.continues else []:
        assert largest_difference(earlier.probes[1], later.probes[0]) <= 1e-5
    if not case.bare:
        return
    bare = answer_logits(tiny, None, batch_of(tiny, toy_tasks[0].test))
    assert largest_difference(bare, trained[0].probes[0]) <= 1e-6
    assert largest_difference(bare, trained[0].probes[1]) > 0.1


def test_first_stage_of_the_plain_methods_is_that_of_sin_lora(tiny, toy_tasks, run_stage):
    """IncLoRA, and O-LoRA without its norm term, train bit for bit SinLoRA's first branch."""
    first = run_stage(tiny, CASES["sin_lora"].params, toy_tasks).part
    for params in (CASES["inc_lora"].params, CASES["o_lora"].params | {"lambda2": 0.0}):
        assert same_part(run_stage(tiny, params, toy_tasks).part, first)
    assert not same_part(run_stage(tiny, CASES["o_lora"].params | {"lambda2": 1.0}, toy_tasks).part, first)


def padded(inputs, pad: int, left: int, right: int):
    """The same batch with more padding."""

    def widen(tensor, value):
        shape = tensor.shape[0]
        return torch.cat([tensor.new_full((shape, left), value), tensor, tensor.new_full((shape, right), value)], dim=1)

    masks = {name: widen(getattr(inputs, name), 0) for name in ("mask", "prompt_mask", "body_mask")}
    decoder_only = inputs.labels.shape == inputs.ids.shape
    labels = widen(inputs.labels, -100) if decoder_only else inputs.labels
    return replace(inputs, ids=widen(inputs.ids, pad), labels=labels, **masks)


def test_batching_does_not_change_an_example(trained, case, tiny, toy_tasks):
    """More padding on either side, a batch of one, or neighbours of other lengths leave an example's logits alone."""
    examples = [*toy_tasks[0].test, *toy_tasks[2].test]
    assert len({len(tiny.tokenizer(e.prompt).input_ids) for e in examples}) > 2
    with serving(tiny, case.params, trained[-1].state) as method:
        inputs = batch_of(tiny, examples)
        together = answer_logits(tiny, method, inputs)
        tolerance = 4e-6 * max(row.abs().max().item() for row in together)
        for left, right in ((3, 0), (0, 4), (2, 1)):
            wider = padded(inputs, tiny.tokenizer.pad_token_id, left, right)
            assert largest_difference(answer_logits(tiny, method, wider), together) <= tolerance
        alone = [answer_logits(tiny, method, batch_of(tiny, [example]))[0] for example in examples]
        assert largest_difference(alone, together) <= tolerance


def test_the_loss_falls_on_a_learnable_task(tiny, case, toy_tasks, run_stage):
    """45 steps on four prompts (120 with rows of its own) bring the loss below a third (soft prompts: less far)."""
    epochs, batch = (45, 16) if case.rows == 1 else (30, 8)
    log = run_stage(tiny, case.params, toy_tasks, epochs=epochs, batch_size=batch).log
    assert len(log) == epochs * case.rows * 16 // batch and log[-1]["loss"] < log[0]["loss"] / case.falls


def test_remove_leaves_no_trace(trained, case, tiny, toy_tasks):
    """After stages and serving, the backbone has its own modules, bytes and forward pass."""
    model = tiny.backbone.model
    modules = dict(model.named_modules())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    plain = answer_logits(tiny, None, batch_of(tiny, toy_tasks[0].test))
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules.values())
    method = make_method(case.params, 3)
    method.install(tiny.backbone, trained[1].state)
    method.remove()
    again = dict(model.named_modules())
    assert again.keys() == modules.keys() and all(again[name] is modules[name] for name in modules)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in again.values()) == hooks
    for ours, base in zip(answer_logits(tiny, None, batch_of(tiny, toy_tasks[0].test)), plain, strict=True):
        assert torch.equal(ours, base)
    base = {name.replace(".base_layer", ""): value for name, value in trained[0].before.items() if "lora" not in name}
    for name, value in model.state_dict().items():
        assert f"model.{name}" not in base or torch.equal(base[f"model.{name}"], value)


def test_a_failing_stage_leaves_no_trace(tiny, case, toy_tasks, run_stage):
    """An error in the middle of a stage takes the adapters off, and it is the error that comes out."""

    def fail(module, encoder):
        raise FloatingPointError("stopped here")

    objects = dict(tiny.backbone.model.named_modules())
    with pytest.raises(FloatingPointError, match="stopped here"):
        run_stage(tiny, case.params, toy_tasks, probe=fail)
    again = dict(tiny.backbone.model.named_modules())
    assert again.keys() == objects.keys() and all(again[name] is objects[name] for name in objects)


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
    assert {a.shape for a in part.branch.a.values()} == {(RANK, 64)}


@pytest.mark.parametrize("stage", [1, 2])
def test_what_the_stage_key_leaves_out_has_no_effect(trained, case, tiny, toy_tasks, run_stage, stage):
    """A hyper-parameter that has no effect at a stage may take another value: the part stays the same, bit for bit."""
    params = method_params(case.params["name"]).model_validate(case.params)
    dead = params.inert(stage)
    assert dead <= OTHER_VALUES.keys(), "give the new field another value in OTHER_VALUES"
    changed = {name: other_value(name, getattr(params, name)) for name in dead}
    assert all(getattr(params, name) != value for name, value in changed.items())
    state = trained[stage - 2].state if stage > 1 else StageState()
    if dead:
        assert same_part(run_stage(tiny, case.params | changed, toy_tasks, state).part, trained[stage - 1].part)


@pytest.mark.parametrize("name", CASES)
def test_inert_settings_are_fields_and_never_the_name(name):
    """A misspelt name in `inert` would leave the field in the key without anyone noticing."""
    params = method_params(CASES[name].params["name"]).model_validate(CASES[name].params)
    for stage in (1, 2, 3):
        assert params.inert(stage) <= type(params).model_fields.keys() - {"name"}
        assert params.at(stage).keys() == type(params).model_fields.keys() - params.inert(stage) - left_at_default(
            params
        )


def left_at_default(params):
    """The fields that keys leave out at their default, and that are at it: older keys were made without them."""
    return {
        name
        for name, info in type(params).model_fields.items()
        if InKeyUnlessDefault() in info.metadata and getattr(params, name) == info.default
    }


def test_a_list_of_weights_counts_only_at_its_stage(tiny, toy_tasks, run_stage, trained, case):
    """lambda lists: `at` shows one value, and the other stages' values have no effect."""
    fields = method_params(case.params["name"]).per_stage_fields()
    for name in fields & case.params.keys():
        value = case.params[name]
        listed = case.params | {name: [9.0, value, 9.0]}
        params = method_params(case.params["name"]).model_validate(listed)
        assert params.at(2) == method_params(case.params["name"]).model_validate(case.params).at(2)
        assert params.at(3)[name] == 9.0
        assert same_part(run_stage(tiny, listed, toy_tasks, trained[0].state).part, trained[1].part)
        third = run_stage(tiny, listed, toy_tasks, trained[1].state).part
        assert not same_part(third, trained[2].part)


@pytest.mark.parametrize("case", OWN_ROWS, indirect=True)
def test_the_logged_loss_is_the_mean_over_answer_tokens(tiny, case, toy_tasks, run_stage):
    """The task loss in the log is the mean cross-entropy per answer token of the training module, at the first step."""
    still = case.params | ({"dropout": 0.0} if case.branch else {})
    examples = toy_tasks[0].train
    result = run_stage(tiny, still, toy_tasks, batch_size=16, epochs=1, probe=probe_logits(tiny, examples))
    inputs = batch_of(tiny, examples)
    total, count = 0.0, 0
    for index, logits in enumerate(result.probes[0]):
        labels = inputs.labels[index][inputs.labels[index] != -100]
        rows = logits if tiny.backbone.encoder_decoder else logits[-len(labels) - 1 : -1]
        total += torch.nn.functional.cross_entropy(rows, labels, reduction="sum").item()
        count += len(labels)
    assert result.log[0]["loss"] == pytest.approx(total / count, rel=1e-5)
