"""What `raycl plan` says before a run, and what the run then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import raycl
from raycl.analysis.outlook import Outlook
from raycl.models.load import load_model
from raycl.models.outline import outline
from raycl.sequence import counting
from raycl.sequence import outlook as looking
from raycl.sequence.resolve import resolve
from raycl.spec import RunSpec
from raycl.state.store import Store
from raycl.testing.case import ADAPTED
from raycl.train.engine import BatchShape
from raycl.train.layout import Layout
from raycl.train.workers import device_name
from tests.kit.cli import invoke
from tests.kit.runs import METHODS, MakeFlags

UNCUT = {"max_source_tokens": 400}
"""Rows of different lengths: the small settings cut all to one."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet mode would silence the other tests' loggers as well; nothing goes to MLflow."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")


@pytest.fixture
def spec(flags: MakeFlags) -> Any:
    """The maker of run specs."""

    def make(method: str | dict[str, object] = "sin_lora", family: str = "llama", **fields: Any) -> RunSpec:
        return resolve("laptop", [{"order": "roget,snippets"}, flags.spec(method, family), fields])

    return make


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_plan_says_what_the_run_then_does(flags: MakeFlags, tmp_path: Path, family: str) -> None:
    """Keys, steps and trained weights; afterwards all is stored, and the speed of what was run is known."""
    store = tmp_path / "store"
    given = flags(store, "sin_lora", family, "roget,snippets", train__epochs=[1, 2], eval__forward="false")
    before = invoke("plan", [*given, "--json"])
    assert before.code == 0, before.output
    assert not store.exists() and not any(path.name.startswith("output") for path in tmp_path.iterdir())
    planned = json.loads(before.stdout)
    assert [stage["stored"] for stage in planned["stages"]] == [False, False]
    assert [stage["steps"] for stage in planned["stages"]] == [4, 8]
    assert planned["scoring"] == {"cells": 3, "stored": 0, "examples": 24, "seconds_per_example": None}
    assert planned["training_seconds"] is None
    shown = invoke("plan", given).stdout
    assert "2 of 2 stages, 12 optimizer steps" in shown and "no stage of this model on this machine yet" in shown
    assert invoke("run", given).code == 0
    manifests = {key: Store(str(store)).manifest(key) for key in Store(str(store)).stage_keys()}
    assert {stage["key"] for stage in planned["stages"]} == set(manifests)
    for stage in planned["stages"]:
        manifest = manifests[stage["key"]]
        assert manifest.steps[-1].steps == stage["steps"]
        assert planned["memory"]["trained"] == 4 * manifest.runtime["trainable_parameters"]
    after = json.loads(invoke("plan", [*given, "--json"]).stdout)
    assert all(stage["stored"] for stage in after["stages"])
    assert after["scoring"]["stored"] == 3 and after["training_seconds"] == 0
    assert after["speed"]["stages"] == 2 and after["speed"]["same_method"]
    speeds = [step.tokens_per_s for manifest in manifests.values() for step in manifest.steps]
    assert min(speeds) <= after["speed"]["tokens_per_s"] <= max(speeds)


def test_tokens_are_those_that_training_reads(spec: Any) -> None:
    """Prompt and answer of every row, as often as there are epochs; padding is more, and with one row at a time none."""
    one = spec(data=UNCUT, train={"micro_batch_size": 1, "batch_size": 4, "epochs": 3})
    found = raycl.look_ahead(one, raycl.Options(store="memory://none"))
    encoder, _ = looking.text_side(one.model, one.data)
    tasks = looking.make_job(one, raycl.Store("memory://none")).tasks
    for stage, task in zip(found.stages, tasks, strict=True):
        rows = [len(row.prompt) + len(row.answer) for row in encoder.encode(task.train)]
        assert (stage.tokens, stage.run, stage.sampled) == (3 * sum(rows), 3 * sum(rows), False)
    padded = raycl.look_ahead(spec(data=UNCUT), raycl.Options(store="memory://none")).stages[0]
    assert padded.run is not None and padded.tokens is not None and padded.run > padded.tokens


def test_steps_of_equal_tokens_are_counted_as_they_are_laid_out(spec: Any) -> None:
    """Less padding and memory than in a plain draw, whose micro-batches may each have the longest row; as many steps."""
    given = {how: spec(data=UNCUT, train={"batch_size": 4, "batches": how}) for how in ("shuffled", "equal_tokens")}
    plain, equal = (raycl.look_ahead(one, raycl.Options(store="memory://none")) for one in given.values())
    assert [stage.steps for stage in plain.stages] == [stage.steps for stage in equal.stages]
    assert all(one.run < other.run for one, other in zip(equal.stages, plain.stages, strict=True))  # pyright: ignore
    one = given["equal_tokens"]
    encoder, _ = looking.text_side(one.model, one.data)
    largest, counter = 0, counting.Counter(one, encoder, 1)
    for task in looking.make_job(one, raycl.Store("memory://none")).tasks:
        layout = Layout(encoder.encode(task.train), BatchShape(4, 4, 1), "equal_tokens")
        steps = layout.steps(torch.Generator().manual_seed(0))
        largest = max(largest, *(len(step) * max(layout.rows[i].tokens for i in step) for step in steps))
        counter.texts(task)
    assert counter.tokens == largest and equal.memory.activations < plain.memory.activations


def test_many_rows_are_sampled(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one of 16, counted twice; the text says about."""
    whole = raycl.look_ahead(spec(data=UNCUT), raycl.Options(store="memory://none"))
    monkeypatch.setattr(counting, "LOOKED_AT", 8)
    half = raycl.look_ahead(spec(data=UNCUT), raycl.Options(store="memory://none"))
    for all_rows, some in zip(whole.stages, half.stages, strict=True):
        assert some.sampled and not all_rows.sampled
        assert some.tokens == pytest.approx(all_rows.tokens, rel=0.3) and some.tokens != all_rows.tokens
        assert (some.rows, some.steps) == (all_rows.rows, all_rows.steps)


def test_rows_that_are_held_out_are_not_trained(spec: Any) -> None:
    """A quarter of 16; of a joint method all tasks are one stage."""
    train = {"keep": "best", "holdout": 0.25, "batch_size": 4, "epochs": 2}
    held = raycl.look_ahead(spec(train=train), raycl.Options(store="memory://none"))
    assert [(stage.rows, stage.steps) for stage in held.stages] == [(12, 6), (12, 6)]
    joint = raycl.look_ahead(spec({"name": "mtl", "rank": 2}), raycl.Options(store="memory://none"))
    assert [(stage.rows, stage.steps) for stage in joint.stages] == [(32, 8)]


def test_passes_beside_the_plain_ones_are_counted(spec: Any) -> None:
    """LwF's teacher from stage 2 on is a forward pass more than IncLoRA; train.base_kl one in every stage; MbPA++ passes
    K rows in each of L steps forward and back before every answer."""

    def look(method: dict[str, object], **train: Any) -> Outlook:
        return raycl.look_ahead(spec({**method, "rank": 2}, train=train), raycl.Options(store="memory://none"))

    plain, taught, held = look({"name": "inc_lora"}), look({"name": "lwf"}), look({"name": "inc_lora"}, base_kl=0.1)
    before, after = ([stage.train.products for stage in one.stages] for one in (plain, taught))
    assert after[0] == before[0] and 1.4 * before[1] < after[1] < 1.6 * before[1]
    assert all(one.train.products > other.train.products for one, other in zip(held.stages, plain.stages, strict=True))
    adapted, not_adapted, twice = (
        look({"name": "mbpa", "neighbours": 4, "local_steps": steps}).rows[-1].work.products for steps in (1, 0, 2)
    )
    assert twice - not_adapted == pytest.approx(2 * (adapted - not_adapted)) and adapted > 5 * not_adapted


def test_what_is_replayed_is_named(spec: Any) -> None:
    """Its rows are known only once the stages before are trained."""
    found: Outlook = raycl.look_ahead(spec({"name": "replay", "rank": 2}), raycl.Options(store="memory://none"))
    assert found.notes == ("rows that replay replays in later stages (real ones) are not counted",)
    assert raycl.look_ahead(spec(), raycl.Options(store="memory://none")).notes == ()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_outline_counts_what_loading_finds(spec: Any, family: str) -> None:
    """All weights, layers, words and width, and what a branch, all weights or soft prompts come to."""
    one = spec(family=family)
    model = load_model(one.model, "cpu").backbone.model
    count = sum(parameter.numel() for parameter in model.parameters())
    found = outline(one)
    assert (found.parameters, found.products.all_layers) == (count, 2 if family == "llama" else 4)
    assert (found.vocabulary, found.width) == tuple(model.get_input_embeddings().weight.shape)
    assert outline(spec({"name": "seq_ft"}, family)).trained == count
    prompted = spec({"name": "lfpt5"}, family)
    assert outline(prompted).trained == prompted.method.soft_tokens(2) * found.width > 0
    assert outline(spec(METHODS["sin_lora"] | {"rank": 4}, family)).trained == 2 * found.trained
    low = outline(spec({"name": "osf", "form": "full", "protect": 5}, family)).trained
    modules = (model.get_submodule(path) for path in ADAPTED[family])
    assert low == sum((min(one.weight.shape) - 5) * sum(one.weight.shape) for one in modules)


def test_another_machines_stages_say_nothing(flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do those of another number of workers; another method's do, and are named."""
    given = flags(tmp_path / "store", "sin_lora", "llama", "roget", eval__forward="false")
    assert invoke("run", given).code == 0
    other = flags(tmp_path / "store", "o_lora", "llama", "roget", eval__forward="false")
    assert "stored stage of other methods" in invoke("plan", other).stdout
    apart = invoke("plan", [*given[:-2], "--workers", "2", "--set", "train.epochs=2"]).stdout
    assert "no stage of this model on this machine yet" in apart
    monkeypatch.setattr("raycl.sequence.speeds.platform.platform", lambda: "another")
    assert "no stage of this model on this machine yet" in invoke("plan", other).stdout
    assert device_name("cpu") == {}


def test_what_a_run_refuses_is_refused(flags: MakeFlags, tmp_path: Path) -> None:
    """With the run's own message and exit code."""
    given = flags(tmp_path / "store", "sin_lora", "llama", "roget")
    for wrong in (["--workers", "3"], ["--set", "groups=2"], ["--model", "/no/model"]):
        planned, refused = (invoke(verb, [*given, *wrong]) for verb in ("plan", "run"))
        assert (planned.code, planned.stderr) == (refused.code, refused.stderr) and planned.code == 2


def test_every_flag_of_a_run_is_taken() -> None:
    """But the one that lists fields; and one of its own."""
    texts = [invoke(verb, ["--help"]).stdout for verb in ("run", "plan")]
    run, plan = ({word.strip("│ ,") for word in text.split() if word.startswith("--")} for text in texts)
    assert run - plan == {"--fields", "--no-fields"} & run and "--json" in plan - run
    assert len(run & plan) > 10
