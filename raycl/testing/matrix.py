"""What must hold for every method, on a decoder-only and an encoder-decoder model: the shared matrix as one class of tests.

A test asks for fixtures by name: `case` (what the method declares), `family` and `tiny` (a tiny model), `toy_tasks` (three
of them), `trained` (the three stages, in memory, with probes), `run_stage` and `run_sequence`. raycl's own tests have them
for all its methods, `raycl.testing.own` for a method from outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from raycl.adapters.branches import adapter_config
from raycl.methods.registry import method_class, method_params
from raycl.models.load import LoadedModel
from raycl.state.manifest import Provenance
from raycl.state.stage_state import StagePart, StageState
from raycl.state.store import Store
from raycl.tasks.task import Task
from raycl.testing.case import Case, expected_trainable
from raycl.testing.probes import (
    answer_logits,
    batch_of,
    labels_of,
    largest_difference,
    left_at_default,
    make_method,
    padded,
    probe_logits,
    same_part,
    served_logits,
    serving,
)
from raycl.testing.ranks import Job, Killed, Memory, run_one
from raycl.testing.toys import StageResult

Trained = list[StageResult]
Tasks = list[Task]
RunStage = Callable[..., StageResult]
RunSequence = Callable[..., list[StageResult]]
SETTINGS: dict[str, Any] = {"lr": 1e-2, "epochs": 2, "batch_size": 8}
"""How `trained` is trained: four steps a stage."""


def needs(condition: bool, why: str) -> None:
    """Skip a test that says nothing about this method."""
    if not condition:
        pytest.skip(why)


class MethodMatrix:
    """The matrix. A subclass's name begins with Test, so that pytest finds it."""

    def test_it_trains_what_is_declared_and_nothing_else(
        self, trained: Trained, case: Case, tiny: LoadedModel, family: str
    ) -> None:
        """The optimizer holds exactly the declared parameters, by name, at every stage."""
        needs(case.trains is not None, "the case does not say what trains")
        for stage, result in enumerate(trained, start=1):
            assert result.trainable == expected_trainable(case, tiny, family, stage)

    def test_what_trains_moves_and_what_is_frozen_stays(self, trained: Trained) -> None:
        """Over a stage each trainable parameter changes; base weights and all that is old keep every bit."""
        for result in trained:
            assert result.trainable and result.before.keys() == result.after.keys()
            moved = {name for name in result.before if not torch.equal(result.before[name], result.after[name])}
            assert moved == set(result.trainable)

    def test_old_parts_are_handed_on_untouched(self, trained: Trained) -> None:
        """A later stage's state begins with the very parts of the stages before it, and they kept their bits."""
        for earlier, later in pairwise(trained):
            assert later.state.parts[:-1] == earlier.state.parts
        stacked = {name: value for name, value in trained[-1].before.items() if name.endswith("frozen_a")}
        for name, value in stacked.items():
            path = name.removeprefix("model.").removesuffix(".frozen_a")
            assert torch.equal(value, torch.cat([r.part.pair.a[path] for r in trained[:-1]]))

    def test_the_part_holds_what_was_trained(self, trained: Trained, case: Case) -> None:
        """What a part holds is the layers' state right after training, on exactly the trained modules."""
        weights = "W" in (case.trains or "")
        branch = case.branch and case.serves_trained and case.holds_trained
        needs(weights or branch, "a part does not hold the weights as they were trained")
        for result in trained:
            if weights:
                held = {f"model.{name.removeprefix('weights/')}": value for name, value in result.part.tensors.items()}
                assert held.keys() >= {name for name in result.trainable if name.startswith("model.")}
                after = result.after
                assert all(torch.equal(value, after[name]) for name, value in held.items() if name in after)
            if not branch:
                continue
            for path, a in result.part.pair.a.items():
                assert torch.equal(a, result.after[f"model.{path}.lora_A.branch.weight"])
                assert torch.equal(result.part.pair.b[path], result.after[f"model.{path}.lora_B.branch.weight"])

    def test_what_a_part_holds_is_documented(self, trained: Trained, case: Case) -> None:
        """`about.state` names every tensor of a part."""
        about = method_class(case.params["name"]).about
        for result in trained:
            kinds = {name.partition("/")[0] for name in result.part.tensors}
            assert kinds <= about.state.keys()
            assert (result.part.branch is not None) <= ("branch" in about.state)

    def test_parts_come_back_from_the_store_bit_for_bit(
        self,
        trained: Trained,
        case: Case,
        tiny: LoadedModel,
        toy_tasks: Tasks,
        run_stage: RunStage,
        tmp_path: Path,
    ) -> None:
        """Published and read, a state is the same, and stage 3 run from the store equals the one run from memory."""
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

    def test_the_seed_decides_everything(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks, run_sequence: RunSequence
    ) -> None:
        """Two runs with one seed give equal parts and losses; another seed gives others."""
        again = run_sequence(tiny, case.params, toy_tasks[:2])
        for first, second in zip(trained, again, strict=False):
            assert same_part(first.part, second.part)
            assert [r["loss"] for r in first.log] == [r["loss"] for r in second.log]
        other = run_sequence(tiny, case.params, toy_tasks[:1], seed=1)
        assert not same_part(trained[0].part, other[0].part)

    def test_serving_gives_the_trained_function(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks
    ) -> None:
        """The published state, served, has the logits of the training module in eval mode: bit for bit, or where effective
        weights are summed up before use (gates), within a rounding of the largest logit. Nothing trains when serving."""
        for result in trained if case.serves_trained else []:
            logits = served_logits(tiny, case.params, result.state, toy_tasks[0].test)
            largest = max(row.abs().max().item() for row in logits)
            assert largest_difference(logits, result.probes[1]) <= case.rounding * largest
        with serving(tiny, case.params, trained[-1].state):
            assert not any(p.requires_grad for p in tiny.backbone.model.parameters())

    def test_who_says_that_it_chooses_routes_every_input_and_nobody_else(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks
    ) -> None:
        """Routes are read back from stored predictions where the class says that there are some."""
        examples = toy_tasks[0].test
        with serving(tiny, case.params, trained[-1].state) as method:
            method.condition(batch_of(tiny, examples))
            routes = method.routes()
        assert (routes is not None) == type(method).chooses
        assert routes is None or len(routes) == len(examples)

    def test_a_stage_starts_from_the_function_of_the_one_before(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks
    ) -> None:
        """A new branch begins at B = 0, or copied: the first step sees the logits that the last stage ended with, within
        1e-5 of the largest. The first stage begins at the base model's function and leaves it."""
        for earlier, later in pairwise(trained) if case.continues else []:
            largest = max(row.abs().max().item() for row in earlier.probes[1])
            assert largest_difference(earlier.probes[1], later.probes[0]) <= 1e-5 * largest
        bare = answer_logits(tiny, None, batch_of(tiny, toy_tasks[0].test))
        needs(case.bare, "the case does not begin at the base model's function")
        assert largest_difference(bare, trained[0].probes[0]) <= 1e-6
        assert largest_difference(bare, trained[0].probes[1]) > 0.1

    def test_batching_does_not_change_an_example(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks
    ) -> None:
        """More padding on either side, a batch of one, or neighbours of other lengths leave an example's logits alone."""
        examples = [*toy_tasks[0].test, *toy_tasks[2].test]
        assert len({len(tiny.tokenizer(e.prompt).input_ids) for e in examples}) > 2
        with serving(tiny, case.params, trained[-1].state) as method:
            inputs, pad = batch_of(tiny, examples), int(str(tiny.tokenizer.pad_token_id))
            together = answer_logits(tiny, method, inputs)
            tolerance = 4e-6 * max(row.abs().max().item() for row in together)
            for left, right in ((3, 0), (0, 4), (2, 1)):
                wider = padded(inputs, pad, left, right)
                assert largest_difference(answer_logits(tiny, method, wider), together) <= tolerance
            alone = [answer_logits(tiny, method, batch_of(tiny, [example]))[0] for example in examples]
            assert largest_difference(alone, together) <= tolerance

    def test_the_loss_falls_on_a_learnable_task(
        self, tiny: LoadedModel, case: Case, toy_tasks: Tasks, run_stage: RunStage
    ) -> None:
        """45 steps on four prompts (120 with rows of its own) bring the loss down by the factor that the case declares."""
        epochs, batch = (45, 16) if case.rows == 1 else (30, 8)
        log = run_stage(tiny, case.params, toy_tasks, epochs=epochs, batch_size=batch).log
        assert len(log) == epochs * case.rows * 16 // batch and log[-1]["loss"] < log[0]["loss"] / case.falls

    def test_the_logged_loss_is_the_mean_over_answer_tokens(
        self, tiny: LoadedModel, case: Case, toy_tasks: Tasks, run_stage: RunStage
    ) -> None:
        """The task loss in the log is the mean cross-entropy per answer token of the training module, at the first step."""
        needs(case.rows == 1, "the case trains on further rows")
        fields = method_params(case.params["name"]).model_fields
        still = case.params | ({"dropout": 0.0} if "dropout" in fields else {})
        examples = toy_tasks[0].train
        result = run_stage(tiny, still, toy_tasks, batch_size=16, epochs=1, probe=probe_logits(tiny, examples))
        inputs = batch_of(tiny, examples)
        total, count = 0.0, 0
        for index, logits in enumerate(result.probes[0]):
            labels = labels_of(inputs)[index]
            labels = labels[labels != -100]
            rows = logits if tiny.backbone.encoder_decoder else logits[-len(labels) - 1 : -1]
            total += torch.nn.functional.cross_entropy(rows, labels, reduction="sum").item()
            count += len(labels)
        assert result.log[0]["loss"] == pytest.approx(total / count, rel=1e-5)

    def test_remove_leaves_no_trace(self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks) -> None:
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
        before = trained[0].before
        base = {name.replace(".base_layer", ""): value for name, value in before.items() if "lora" not in name}
        for name, value in model.state_dict().items():
            assert f"model.{name}" not in base or torch.equal(base[f"model.{name}"], value)

    def test_a_failing_stage_leaves_no_trace(
        self, tiny: LoadedModel, case: Case, toy_tasks: Tasks, run_stage: RunStage
    ) -> None:
        """An error in the middle of a stage takes the adapters off, and it is the error that comes out."""

        def fail(module: Any, encoder: Any) -> None:
            raise FloatingPointError("stopped here")

        objects = dict(tiny.backbone.model.named_modules())
        with pytest.raises(FloatingPointError, match="stopped here"):
            run_stage(tiny, case.params, toy_tasks, probe=fail)
        again = dict(tiny.backbone.model.named_modules())
        assert again.keys() == objects.keys() and all(again[name] is objects[name] for name in objects)

    @pytest.mark.parametrize("stage", [1, 2])
    def test_what_the_stage_key_leaves_out_has_no_effect(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks, run_stage: RunStage, stage: int
    ) -> None:
        """A hyper-parameter without effect at a stage may take another value: the part stays the same, bit for bit."""
        params = method_params(case.params["name"]).model_validate(case.params)
        dead = params.inert(stage)
        assert dead <= case.other_values.keys(), "give each such field another value in the case's `other_values`"
        changed = {name: case.another(name, getattr(params, name)) for name in dead}
        state = trained[stage - 2].state if stage > 1 else StageState()
        if dead:
            part = run_stage(tiny, case.params | changed, toy_tasks, state).part
            assert same_part(part, trained[stage - 1].part)

    def test_inert_settings_are_fields_and_never_the_name(self, case: Case) -> None:
        """A misspelt name in `inert` would leave the field in the key without anyone noticing."""
        params = method_params(case.params["name"]).model_validate(case.params)
        fields = type(params).model_fields.keys()
        for stage in (1, 2, 3):
            assert params.inert(stage) <= fields - {"name"}
            assert params.at(stage).keys() == fields - params.inert(stage) - left_at_default(params)

    def test_who_declares_no_replay_keeps_no_example(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks
    ) -> None:
        """A third stage trains on rows of its own task only, and no part holds an example's text."""
        needs(method_class(case.params["name"]).about.replays == "no", "the method declares that it replays")
        method = make_method(case.params, 3)
        method.install(tiny.backbone, trained[1].state)
        try:
            rows = method.examples(toy_tasks[2].train, lambda texts, sampling, generator: pytest.fail("it writes rows"))
        finally:
            method.remove()
        assert {row.example.body for row in rows} <= {example.body for example in toy_tasks[2].train}
        kept = json.dumps([result.part.facts for result in trained])
        assert not [example.body for task in toy_tasks for example in task.train if example.body in kept]

    def test_a_list_of_weights_counts_only_at_its_stage(
        self, tiny: LoadedModel, toy_tasks: Tasks, run_stage: RunStage, trained: Trained, case: Case
    ) -> None:
        """Of a list per stage `at` shows one value, and the other stages' values have no effect."""
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

    def test_a_killed_stage_goes_on_where_it_was(
        self, trained: Trained, case: Case, tiny: LoadedModel, toy_tasks: Tasks
    ) -> None:
        """Killed after a mid-stage checkpoint and started again, a stage has the log and the part, bit for bit, of one that
        nothing disturbed, dropout included."""
        memory = Memory()
        settings = SETTINGS | case.train | {"checkpoint_every": 3}

        def run() -> tuple[StagePart, list[dict[str, Any]]]:
            return run_one(tiny, Job(case.params, settings), toy_tasks, trained[0].state, partial=memory)

        with pytest.raises(Killed):
            run()
        part, log = run()
        assert memory.steps == list(range(3, log[-1]["steps"], 3))
        assert [(r["step"], r["loss"], r["terms"]) for r in log] == [
            (r["step"], r["loss"], r["terms"]) for r in trained[1].log
        ]
        assert same_part(part, trained[1].part)
