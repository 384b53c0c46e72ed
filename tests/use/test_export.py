"""Exports without raycl: the same model where they are exact, for every method; measured where they are not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raycl import SpecError, UserError, find_head, load
from raycl.methods.registry import METHODS
from raycl.tasks.load import load_tasks
from raycl.use.export import Exported, export
from raycl.use.forms import EXACT, ExportChange, Form, served_as
from tests.kit.trained import NOT_EXACT, ORDER, Trained, assert_same_logits

VARIANTS = ("per_task/full", "mtl/full", "migu/full", "merging/factors", "inc_lora/mix")
ROUTED = ("route_lora", "route_lora/hidden", "route_lora/families", "route_lora/t5")
T5 = ("inc_lora/t5", "prog_prompt/t5")

ELSEWHERE = """
import sys, json, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from peft import PeftModel

def model_of(folder):
    seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    return (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)

def logits(model, ids):
    base = model.config
    start = base.decoder_start_token_id if base.is_encoder_decoder else None
    fed = {} if start is None else {"decoder_input_ids": torch.tensor([[start]])}
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **fed).logits[0]

jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
for name, job in jobs.items():
    folder = Path(job["folder"])
    found = []
    if job["form"] == "model":
        model = model_of(folder)
        found = [logits(model, ids) for ids in job["ids"]]
    elif job["form"] == "adapter":
        model = PeftModel.from_pretrained(model_of(job["base"]), folder)
        found = [logits(model, ids) for ids in job["ids"]]
    else:
        base, tokenizer = model_of(job["base"]), AutoTokenizer.from_pretrained(job["base"])
        adapters = {task: folder / "adapters" / task for task in job["tasks"]}
        models = {task: PeftModel.from_pretrained(model_of(job["base"]), one) for task, one in adapters.items()}
        routes = job["routes"]
        if routes is None:
            sys.modules.pop("route", None)
            sys.path.insert(0, str(folder))
            import route
            sys.path.pop(0)
            bare, on = (route.Router(folder, model, tokenizer) for model in (base, models[job["tasks"][0]]))
            routes = [bare.task(*prompt) for prompt in job["prompts"]]
            assert routes == [on.task(*prompt) for prompt in job["prompts"]]
            assert abs(sum(bare.probabilities(*job["prompts"][0]).values()) - 1) < 1e-9
            (out / f"{name}.json").write_text(json.dumps(routes))
        found = [logits(models.get(task, base), ids) for task, ids in zip(routes, job["ids"])]
    torch.save(found, out / f"{name}.pt")
assert not [name for name in sys.modules if name.split(".")[0] == "raycl"]
"""


@dataclass(frozen=True)
class Job:
    """One export, and what raycl says of the same prompts."""

    done: Exported
    ours: list[Tensor]
    routes: list[str | None] | None
    """Where raycl sends the prompts, none for the base model; none where nothing is routed."""


Elsewhere = Callable[[str], list[tuple[Job, list[Tensor], list[str | None] | None]]]


def made(folder: Path, to: Path, task: str | None, form: Form) -> tuple[Job, dict[str, Any]]:
    """An export of a run, and what another process is told of it."""
    head = find_head(str(folder))
    done = export(head, to, form, task)
    examples, ids, ours, routes, told = [], [], [], [], []
    for one in load_tasks([task] if task else list(ORDER), head.spec.data):
        with load(str(folder), task=one.name if head.needs_task else None) as served:
            answers = served.generate([example.body for example in one.test], 1, task=one.name)
            encoded = served.encode(one.test)
            said = zip(served.logits(one.test), encoded, strict=True)
            ours += [row[-len(each) :] if len(row) > 1 else row for row, each in said]
        examples += [[example.body, example.head, example.tail] for example in one.test]
        ids += encoded
        routes += [answer.route and (answer.route.task if answer.route.known else None) for answer in answers]
        told += [one.name] * len(one.test)
    routed = served_as(head) == "each"
    values = {"form": form, "base": head.spec.model.name, "folder": str(to), "tasks": list(done.adapters), "ids": ids}
    return Job(done, ours, routes if routed else None), values | {
        "prompts": examples,
        "routes": None if routed else told,
    }


@pytest.fixture(scope="module")
def elsewhere(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Everything that is exported exactly, loaded and run in one process that never imports raycl: by run, each form."""
    root = tmp_path_factory.mktemp("elsewhere")
    jobs: dict[str, Job] = {}
    told: dict[str, Any] = {}
    for run in (*METHODS, *VARIANTS, *ROUTED[1:], *T5):
        head = find_head(str(trained(run)))
        forms: tuple[Form, ...] = EXACT[served_as(head)]
        tasks = (
            [None, "roget"]
            if head.needs_task and served_as(head) != "weights"
            else ["roget" if head.needs_task else None]
        )
        for task in tasks:
            for form in ("routed",) if head.needs_task and task is None else forms:
                name = f"{run.replace('/', '-')} {form} {task}"
                jobs[name], told[name] = made(trained(run), root / name, task, form)
    (root / "jobs.json").write_text(json.dumps(told))
    (root / "program.py").write_text(ELSEWHERE)
    command = [sys.executable, "-P", "program.py", "jobs.json", "."]
    subprocess.run(command, check=True, cwd=root, timeout=540)

    def found(run: str) -> list[tuple[Job, list[Tensor], list[str | None] | None]]:
        names = [name for name in jobs if name.split()[0] == run.replace("/", "-")]
        routes = [json.loads((root / f"{name}.json").read_text()) if jobs[name].routes else None for name in names]
        logits = [torch.load(root / f"{name}.pt", weights_only=True) for name in names]
        return [(jobs[name], *rest) for name, *rest in zip(names, logits, routes, strict=True)]

    return found


@pytest.mark.parametrize("run", [*METHODS, *VARIANTS, *ROUTED[1:], *T5])
def test_what_is_exported_exactly_is_the_same_model_without_raycl(
    run: str, elsewhere: Elsewhere, trained: Trained
) -> None:
    """In every form that the method has: the same logits in fp32 on every test prompt, and the same routes."""
    found = elsewhere(run)
    said = served_as(find_head(str(trained(run))))
    assert bool(found) == bool(EXACT[said])
    for job, theirs, routes in found:
        assert job.done.exact and routes == job.routes
        for one, other in zip(job.ours, theirs, strict=True):
            assert_same_logits(one, other[-len(one) :])
            assert one.abs().max() > 0.1


def test_inputs_that_no_task_knows_are_among_the_routes(elsewhere: Elsewhere) -> None:
    """So the test above has seen the base model answer, and both tasks."""
    ((job, _, routes),) = elsewhere("route_lora/hidden")
    assert job.routes is not None and {None, *ORDER} == set(routes or ())


def test_ranks_and_what_vllm_is_told(elsewhere: Elsewhere) -> None:
    """The rank of a sum is the sum of ranks; of several adapters the largest counts."""
    ranks = {run: elsewhere(run)[0][0].done for run in ("inc_lora", "ewc", "merging/factors", "route_lora", "lorac")}
    assert [done.rank for done in ranks.values()] == [4, 2, 3, 2, 4]
    assert {done.max_lora_rank for done in ranks.values()} == {8}
    assert json.loads((ranks["inc_lora"].folder / "adapter_config.json").read_text())["r"] == 4
    assert ranks["route_lora"].adapters == ORDER


@pytest.mark.parametrize("run", [*NOT_EXACT, "l2p", "lfpt5", "mbpa"])
def test_what_is_no_adapter_is_not_exported_as_one(run: str, trained: Trained, tmp_path: Path) -> None:
    """With the option that approximates it, where there is one."""
    head = find_head(str(trained(run)))
    with pytest.raises(
        SpecError, match="no single LoRA adapter.*--approximate mean" if run in NOT_EXACT else "generate"
    ):
        export(head, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_method_does_not_have_is_refused(trained: Trained, tmp_path: Path) -> None:
    """A form, a task, a change; a folder with something in it stays as it is."""
    runs = ("inc_lora", "route_lora", "prog_prompt", "per_task/full")
    summed, routed, prompts, full = (find_head(str(trained(run))) for run in runs)
    model = summed.spec.model.model_copy(update={"quantization": "4bit"})
    quantised = replace(summed, spec=summed.spec.model_copy(update={"model": model}))
    for head, given, message in (
        (routed, {"form": "adapter"}, "allowed for .*: routed"),
        (summed, {"form": "routed"}, "adapter, model"),
        (summed, {"form": "zip"}, "is no form"),
        (prompts, {"task": "plots"}, "allowed: roget, snippets"),
        (full, {}, "name one with --task"),
        (summed, {"task": "roget"}, "the same for all its tasks"),
        (routed, {"task": "roget"}, "the adapter of each is in the export"),
        (quantised, {"form": "model"}, "in 4bit, and merged .*allowed: --form adapter"),
        (summed, {"change": ExportChange("mean")}, "the export is exact"),
        (summed, {"change": ExportChange(compress=4)}, "rank is 4"),
        (summed, {"change": ExportChange(compress=0)}, "1 or more"),
        (summed, {"form": "model", "change": ExportChange(compress=1)}, "one LoRA adapter"),
        (prompts, {"task": "roget", "change": ExportChange(dtype="bf16")}, "allowed: fp32"),
    ):
        with pytest.raises(SpecError, match=message):
            export(head, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SpecError, match="is not empty"):
        export(summed, tmp_path)
    for place in (tmp_path / "mine", tmp_path / "mine" / "in"):
        with pytest.raises(SpecError, match="mine is a file"):
            export(summed, place)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_exact_export_needs_no_data(trained: Trained, tmp_path: Path) -> None:
    """What is written is in the store; only what a change costs is measured on the tasks' data."""
    for run in ("inc_lora", "per_task"):
        head = find_head(str(trained(run)))
        data = head.spec.data.model_copy(update={"stream": str(tmp_path / "gone.yaml")})
        moved = replace(head, spec=head.spec.model_copy(update={"data": data}))
        assert export(moved, tmp_path / run).exact
        with pytest.raises(UserError, match="gone"):
            export(moved, tmp_path / "rounded", change=ExportChange(dtype="bf16"))
