"""A finished state in use: it answers as it was scored, for every method; what names it; its history."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from raycl import SpecError, StoreError, find_head, load
from raycl.adapters.stacked_lora import StackedLora
from raycl.analysis.history import diff, log, shared
from raycl.files import finite
from raycl.methods.registry import METHODS, method_class, method_params
from raycl.tasks.load import load_tasks
from raycl.use.forms import EXACT
from raycl.use.heads import tag
from raycl.use.served import Served, load_base
from raycl.use.stages import facts, scores_of
from tests.kit.cli import invoke
from tests.kit.serving import client_of
from tests.kit.trained import ORDER, Trained, stored


@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_answers_as_it_was_scored(method: str, trained: Trained) -> None:
    """Evaluated and generated, for each task that was trained; nothing stays on the base model."""
    folder = trained(method)
    for task in ORDER:
        with load(str(folder), task=task if method_class(method).needs_task_id else None) as served:
            found = served.evaluate(task)
            (data,) = load_tasks([task], served.head.spec.data)
            answers = served.generate([example.body for example in data.test], task=task)
        assert [row["prediction"] for row in found.predictions] == stored(folder, task)
        assert [answer.text for answer in answers] == stored(folder, task)
        assert [answer.prompt for answer in answers] == [example.prompt for example in data.test]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_served_answers_as_it_was_scored(method: str, trained: Trained) -> None:
    """Over the API, all texts of a task in one request; what the method must be told is in the model's name."""
    folder = trained(method)
    head = find_head(str(folder))
    with client_of(str(folder)) as client:
        for task in ORDER:
            (data,) = load_tasks([task], head.spec.data)
            model = f"{folder.name}/{task}" if method_class(method).needs_task_id else folder.name
            body = {"model": model, "prompt": [one.body for one in data.test], "raycl": {"task": task}}
            found = client.post("/v1/completions", json=body).json()
            assert [choice["text"] for choice in found["choices"]] == stored(folder, task)


def test_an_input_is_explained_by_branch(trained: Trained) -> None:
    """Gates of both tasks, alike in every layer; a route with its probability; nothing where branches are summed."""
    with load(str(trained("gain_lora"))) as served:
        (answer,) = served.generate(["Entry: dog"], 4, explain=True, task="roget")
        assert served.branches == ORDER
        assert answer.strengths is not None
        assert len(answer.strengths.mean) == 2 and len(answer.strengths.layers) == 4
        assert all(one == pytest.approx(answer.strengths.mean) for one in answer.strengths.layers.values())
        mixers = [one.mixer for one in served.model.modules() if isinstance(one, StackedLora)]
        assert all("note" not in mixer.__qualname__ for mixer in mixers)
    with load(str(trained("route_lora"))) as served:
        (answer,) = served.generate(["Text: fine"], 4, explain=True, task="snippets")
        assert answer.route is not None and answer.route.task in ORDER
        assert served.routes([served.prompt("snippets", "Text: fine")]) == [answer.route]
    with load(str(trained("inc_lora"))) as served:
        assert served.generate(["x"], 2, explain=True)[0].strengths is None
        assert served.routes([served.prompt("snippets", "x")]) == []


def test_a_text_is_put_into_the_prompt_that_was_trained(trained: Trained) -> None:
    with load(str(trained("inc_lora"))) as served:
        assert served.prompt("snippets", "Text: fine").prompt == (
            "What is the verdict of the following snippet from a film review? Choose one from the option.\n"
            "Option: positive, negative \nText: fine\nAnswer:"
        )
        with pytest.raises(SpecError, match="allowed: roget, snippets"):
            served.prompt("nobody", "x")


def test_what_names_a_state(trained: Trained, tmp_path: Path) -> None:
    """A folder, a stage's key or its start; with the stage of the first task only that is served."""
    folder = trained("inc_lora")
    head = find_head(str(folder))
    assert head.spec.tasks == list(ORDER) and head.keys() == (head.last,)
    first = find_head(head.stages[0][:12], head.store.uri)
    assert first.stages == head.stages[:1] and first.spec.tasks == ["roget"]
    assert first.spec.model.name == head.spec.model.name
    with load(head.last, head.store.uri) as by_key, load(str(folder)) as by_run:
        assert by_key.generate(["a film"], 6) == by_run.generate(["a film"], 6)
    assert not head.spec.data.allow_code and find_head(str(folder), allow_code=True).spec.data.allow_code
    with pytest.raises(SpecError, match="no run and no stage of that name"):
        find_head("nothing", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="has no stage"):
        find_head(str(folder), str(tmp_path / "none"))
    with pytest.raises(SpecError, match="name one with --task"):
        load(str(trained("per_task")))


def test_another_model_is_refused(trained: Trained, tiny_folders: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match="is not the model"):
        load(str(trained("inc_lora")), model=str(tiny_folders["llama"]))


def test_a_history_and_what_differs(trained: Trained) -> None:
    """The same run has no difference; another method's stages differ in their settings, and a shorter one lacks a stage."""
    head, other = find_head(str(trained("inc_lora"))), find_head(str(trained("o_lora")))
    assert [(one.stage, one.task, one.key) for one in log(head.manifests)] == [
        (place, task, key) for place, (task, key) in enumerate(zip(ORDER, head.stages, strict=True), start=1)
    ]
    assert diff(head.manifests, head.manifests) == [] and shared(head.manifests, head.manifests) == 2
    changed = {(one.stage, one.field): (one.one, one.other) for one in diff(head.manifests, other.manifests)}
    assert changed[1, "method.name"] == ("inc_lora", "o_lora") and shared(head.manifests, other.manifests) == 0
    first = find_head(head.stages[0], head.store.uri)
    assert [(one.stage, one.field, one.other) for one in diff(head.manifests, first.manifests)] == [
        (2, "stage", "there is none")
    ]
    assert shared(head.manifests, first.manifests) == 1


def test_what_the_stages_hold_and_scored(trained: Trained, tmp_path: Path) -> None:
    """Branches, gates, parents and sizes from the store; the matrix is the one the run wrote; a stage's key has no data."""
    head = find_head(str(trained("gain_lora")))
    one, other = facts(head)
    assert (one.entry.task, one.parent, other.parent) == ("roget", None, head.stages[0])
    assert one.branch == {"rank": 2, "alpha": 32.0, "modules": 4} and set(one.tensors) == {"gate", "gate_basis"}
    part = head.store.read(head.stages[0])
    assert one.tensors["gate"] == sum(part.tensors[f"gate/{level}"].numel() for level in range(3))
    folder = Path(head.store.folder(head.stages[0]))
    assert one.size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    matrix = scores_of(head)
    assert matrix is not None and finite(matrix.to_json()) == json.loads(
        (trained("gain_lora") / "matrix.json").read_text()
    )
    early = scores_of(head.after(1))
    assert early is not None and early.get(1, "roget") == matrix.get(1, "roget") and list(early.tasks) == ["roget"]
    assert scores_of(find_head(head.last, head.store.uri)) is None


def test_a_tag_names_a_state_and_moves(trained: Trained) -> None:
    head, other = find_head(str(trained("inc_lora"))), find_head(str(trained("o_lora")))
    tag(head, "production")
    assert find_head("production").stages == head.stages
    tag(other, "production")
    assert find_head("production").stages == other.stages
    assert find_head("production").spec == other.spec
    for name in ("", "a/b", "../x", "-x"):
        with pytest.raises(SpecError, match="tag"):
            tag(head, name)


def test_a_folder_is_never_taken_for_a_tag(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`out/1` is a place, whatever `out-1` is a name of."""
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tag(find_head(str(trained("inc_lora"))), "out-1")
    assert find_head("out-1").spec.method.name == "inc_lora"
    with pytest.raises(SpecError, match="no run and no stage of that name"):
        find_head("out/1")
    shutil.copytree(trained("o_lora"), tmp_path / "out" / "1")
    assert find_head("out/1").spec.method.name == "o_lora"


MERGED = [name for name in METHODS if "model" in EXACT[method_class(name).in_peft(method_params(name)(name=name))]]
"""Methods whose branches, under their settings here, are a part of the weights."""


@pytest.mark.parametrize("run", [*MERGED, "inc_lora/mix", "merging/factors"])
def test_what_is_merged_answers_as_it_was_scored(run: str, trained: Trained) -> None:
    """In fp32, with no layer of raycl's on the model; afterwards the weights are what they were, bit for bit."""
    folder = trained(run)
    head = find_head(str(folder))
    loaded = load_base(head, None, "cpu")
    before = {name: value.clone() for name, value in loaded.backbone.model.state_dict().items()}
    task = ORDER[1] if head.needs_task else None
    with Served(head, loaded, task, merge=True) as served:
        assert not [module for module in served.model.modules() if isinstance(module, StackedLora)]
        assert [row["prediction"] for row in served.evaluate(ORDER[1]).predictions] == stored(folder, ORDER[1])
    after = loaded.backbone.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("method", ["gain_lora", "route_lora", "prog_prompt"])
def test_what_depends_on_the_input_is_not_merged(method: str, trained: Trained) -> None:
    """With the reason; the base model is left as it was."""
    folder, task = trained(method), ORDER[0] if method == "prog_prompt" else None
    with pytest.raises(SpecError, match=r"merge: .* no part of the weights"):
        load(str(folder), task=task, merge=True)
    done = invoke("generate", [str(folder), "x", "--merge", *(["--task", task] if task else [])])
    assert done.code == 2 and "next step: leave it out" in done.stderr
    plain = invoke("generate", [str(trained("inc_lora")), "Entry: oak", "--task", "roget"]).stdout
    assert invoke("generate", [str(trained("inc_lora")), "Entry: oak", "--task", "roget", "--merge"]).stdout == plain
