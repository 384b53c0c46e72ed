"""A finished state in use: it answers as it was scored, for every method; exports without raycl are the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raycl import Options, SpecError, StoreError, find_head, load, resolve, run_sequence
from raycl.adapters.stacked_lora import StackedLora
from raycl.analysis.history import diff, log, shared
from raycl.methods.registry import METHODS, method_class, method_params
from raycl.sequence.job import make_job
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from raycl.use.export import added, export, served_branch
from raycl.use.heads import tag

ORDER = ("roget", "snippets")
SETTINGS: dict[str, dict[str, Any]] = {
    "gain_lora": {"gate_hidden": [8]},
    "migu": {"over": "sin_lora"},
    "lfpt5": {"length": 4},
    "merging": {"merge": "mean"},
}
Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The output folder of a short sequence of a method, trained once."""
    root = tmp_path_factory.mktemp("use")

    def run(method: str) -> Path:
        folder = root / method
        if not folder.exists():
            known = method_params(method).model_fields
            rank = {"rank": 2} if "rank" in known else {}
            chosen = {key: value for key, value in SETTINGS.get(method, {}).items() if key in known}
            data = {
                "source": "demo",
                "train_examples": 16,
                "test_examples": 6,
                "max_source_tokens": 48,
                "max_target_tokens": 8,
            }
            layer = {
                "order": ",".join(ORDER),
                "model": {"name": str(model_folders["llama"]), "precision": "fp32"},
                "data": data | {"max_target_tokens": 8},
                "method": {"name": method, **rank, **chosen},
                "train": {"lr": 0.02, "epochs": 2},
                "workers": 0,
            }
            options = Options(str(root / "store"), f"sqlite:///{root / 'mlflow.db'}", output=str(folder))
            run_sequence(resolve("laptop", [layer]), options, listeners=[])
        return folder

    return run


def stored(folder: Path, task: str) -> list[str]:
    """The predictions that the last row holds for a task."""
    head = find_head(str(folder))
    job = make_job(head.spec, head.store)
    cell = next(cell for cell in job.plan.cells_of(job.plan.stages[-1].row) if cell.task == task)
    return [row["prediction"] for row in head.store.read_predictions(cell.key)]


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
    with load(str(trained("inc_lora"))) as served:
        assert served.generate(["x"], 2, explain=True)[0].strengths is None


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


LOADED = """
import sys, json, torch
form, base, folder, out = sys.argv[1:]
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(base if form == "adapter" else folder, dtype=torch.float32)
if form == "adapter":
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder)
ids = torch.arange(3, 15)[None]
torch.save(model.eval()(ids).logits, out)
assert not [name for name in sys.modules if name.split(".")[0] == "raycl"]
"""


@pytest.mark.parametrize("form", ["adapter", "model"])
@pytest.mark.parametrize("method", ["inc_lora", "o_lora", "ewc", "per_task"])
def test_an_export_is_the_same_model_without_raycl(method: str, form: str, trained: Trained, tmp_path: Path) -> None:
    """In a process that never imports raycl: logits equal within 1e-5 in fp32; the rank is the sum of the branches'."""
    head, task = find_head(str(trained(method))), "roget" if method == "per_task" else None
    done = export(head, tmp_path / "out", form, task)  # type: ignore[arg-type]
    assert done.rank == (4 if method in ("inc_lora", "o_lora") else 2)
    (tmp_path / "loaded.py").write_text(LOADED)
    arguments = [form, head.spec.model.name, str(tmp_path / "out"), str(tmp_path / "logits")]
    subprocess.run(
        [sys.executable, "-P", str(tmp_path / "loaded.py"), *arguments], check=True, cwd=tmp_path, timeout=300
    )
    with load(str(trained(method)), task=task) as served:
        ours = served.model(torch.arange(3, 15)[None]).logits
    theirs = torch.load(tmp_path / "logits", weights_only=True)
    assert (ours - theirs).abs().max() < 1e-5
    assert ours.abs().max() > 0.1
    if form == "adapter":
        assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == done.rank


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("inc_lora", "o_lora", "ewc", "per_task")])
def test_what_is_no_adapter_is_not_exported_as_one(method: str, trained: Trained, tmp_path: Path) -> None:
    """Whatever PEFT alone does not make the served model of is refused; all others are one branch."""
    head = find_head(str(trained(method)))
    said = method_class(method).in_peft(head.spec.method)
    task = "roget" if head.needs_task else None
    if said != "none":
        assert served_branch(head, task).rank >= 2
        return
    with pytest.raises(SpecError, match="no single LoRA adapter"):
        export(head, tmp_path / "out", task=task)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SpecError, match="is not empty"):
        export(find_head(str(trained("inc_lora"))), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_sum_of_branches_by_hand(trained: Trained) -> None:
    """Of each module: s_1 B_1 A_1 + s_2 B_2 A_2, within rounding."""
    head = find_head(str(trained("inc_lora")))
    parts = [Store(head.store.uri).read(key).pair for key in head.stages]
    one = added(parts)
    for path in one.a:
        by_hand = sum(part.alpha / part.rank * part.b[path] @ part.a[path] for part in parts)
        assert torch.allclose(one.alpha / one.rank * one.b[path] @ one.a[path], torch.as_tensor(by_hand), atol=1e-6)


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
