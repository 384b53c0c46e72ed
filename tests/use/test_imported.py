"""An adapter that was trained elsewhere as a stage: the same function as before, named by what it is."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raycl import ForeignAdapter, Options, SpecError, StoreError, UserError, find_head, import_adapter, load, resolve
from raycl.adapters.branches import adapter_config
from raycl.adapters.carriers import widths
from raycl.analysis.history import log
from raycl.models.load import base_place, load_model
from raycl.sequence.driver import run_sequence
from raycl.state.part_files import encode_part
from raycl.state.stage_state import Branch, StagePart
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from raycl.use.heads import Head
from raycl.use.imported import take_in
from tests.kit.trained import Trained, assert_same_logits


def options(head: Head, folder: Path) -> Options:
    """In the store of a run; MLflow beside the files."""
    return Options(head.store.uri, f"sqlite:///{folder.parent / 'mlflow.db'}", output=str(folder))


def changed(adapter: Path, to: Path, **config: Any) -> Path:
    """A copy of an adapter with other values in its config."""
    to.mkdir()
    values = json.loads((adapter / "adapter_config.json").read_text()) | config
    (to / "adapter_config.json").write_text(json.dumps(values))
    (to / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    return to


def adapter_of(head: Head, stage: int, to: Path) -> Path:
    """A stage's adapter as PEFT saves one, which names its base model: the store's names no place."""
    stored = Path(head.store.folder(head.stages[stage - 1])) / "adapter"
    return changed(stored, to, base_model_name_or_path=head.spec.model.name)


@pytest.mark.parametrize("method", ["inc_lora", "o_lora", "route_lora", "per_task"])
def test_what_was_trained_here_comes_back_as_it_was(method: str, trained: Trained, tmp_path: Path) -> None:
    """The second stage of a run, taken in after the first: the same branch and router's sums, and so the same scores.

    Its key names the adapter, so that the same one is found again, and the log says where it comes from.
    """
    whole = find_head(str(trained(method)))
    early = whole.after(1)
    adapter = ForeignAdapter(adapter_of(whole, 2, tmp_path / "adapter"))
    done = import_adapter(adapter, "snippets", early, options(whole, tmp_path / "one"), listeners=[])
    assert done.head.stages[0] == whole.stages[0] and done.head.last != whole.last
    theirs, ours = whole.store.read(whole.last), whole.store.read(done.head.last)
    for side, other in ((theirs.pair.a, ours.pair.a), (theirs.pair.b, ours.pair.b)):
        assert side.keys() == other.keys() and all(torch.equal(side[path], other[path]) for path in side)
    assert theirs.tensors.keys() == ours.tensors.keys() and theirs.facts == ours.facts
    assert all(torch.equal(theirs.tensors[name], ours.tensors[name]) for name in theirs.tensors)
    with load(str(trained(method)), task="snippets") as served:
        assert done.after["snippets"] == served.evaluate("snippets").score
    assert [one.imported for one in log(done.head.manifests)] == [False, True]
    assert done.head.manifests[-1].steps == ()
    again = import_adapter(adapter, "snippets", early, options(whole, tmp_path / "two"), listeners=[])
    assert again.head.stages == done.head.stages
    assert json.loads((tmp_path / "two/summary.json").read_text())["trained_stages"] == []
    by_key = find_head(done.head.last, whole.store.uri)
    assert by_key.spec.imported == {"snippets": done.head.manifests[-1].recipe["imported"]}


def test_an_adapter_of_pefts_own_is_the_same_function(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """rsLoRA of another rank on fewer modules in bf16, as the first stage of a new run: logits as PEFT's."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = str(model_folders["llama"])
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value).bfloat16().float() * 0.1
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs/adapter_model.safetensors")
    rounded = {name: value.bfloat16() for name, value in tensors.items()}
    save_file(rounded, tmp_path / "theirs/adapter_model.safetensors", metadata={"format": "pt"})
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "theirs"
    )
    data = {"source": "demo", "train_examples": 16, "test_examples": 4, "max_source_tokens": 48, "max_target_tokens": 8}
    layer = {
        "order": "roget",
        "model": {"name": base, "precision": "fp32"},
        "data": data,
        "method": {"name": "route_lora", "rank": 5, "alpha": 7},
        "workers": 0,
    }
    where = Options(str(tmp_path / "store"), f"sqlite:///{tmp_path / 'mlflow.db'}", output=str(tmp_path / "run"))
    spec = resolve("laptop", [layer])
    done = import_adapter(ForeignAdapter(tmp_path / "theirs"), "roget", spec, where, listeners=[])
    assert done.before == {} and list(done.after) == ["roget"]
    assert done.head.records == find_head(str(tmp_path / "run")).records
    with load(str(tmp_path / "run")) as served:
        (task,) = load_tasks(["roget"], served.head.spec.data)
        for ours, ids in zip(served.logits(task.test), served.encode(task.test), strict=True):
            with torch.no_grad():
                logits = theirs.eval()(input_ids=torch.tensor([ids])).logits[0]
            assert_same_logits(ours, logits)
            assert (ours - logits).abs().max() < (
                logits - model.get_base_model()(torch.tensor([ids])).logits[0]
            ).abs().max()
    with pytest.raises(SpecError, match="a new run takes it alone, not roget"):
        import_adapter(ForeignAdapter(tmp_path / "theirs"), "plots", spec, where, listeners=[])
    imported = next((tmp_path / "store/imported").rglob("adapter_model.safetensors"))
    imported.unlink()
    other = done.head.spec.model_copy(update={"seed": 1})
    with pytest.raises(StoreError, match=r"take the adapter in again"):
        run_sequence(other, where, listeners=[])


@pytest.mark.slow
def test_an_export_on_the_packaged_model_names_what_it_was_trained_on(tmp_path: Path) -> None:
    """That is a folder, which the run knows by another name."""
    spec = resolve(
        "laptop", [{"order": "roget", "method": {"name": "inc_lora", "rank": 1}, "model": {"precision": "fp32"}}]
    )
    loaded = load_model(spec.model, "cpu")
    path = next(path for path in loaded.backbone.regions if path.endswith(loaded.backbone.targets[0]))
    d_in, d_out = widths(loaded.backbone.model.get_submodule(path))
    branch = Branch(1, 1.0, {path: torch.zeros(1, d_in)}, {path: torch.zeros(d_out, 1)})
    config = adapter_config(loaded.backbone, branch, base_place(spec.model))
    for name, content in encode_part(StagePart("export", branch), config).items():
        (tmp_path / Path(name).name).write_bytes(content)
    store = Store(str(tmp_path / "store"))
    assert spec.model.name == "packaged"
    taken, _ = store.read_import(take_in(ForeignAdapter(tmp_path), spec, store))
    assert taken.rank == 1


def test_what_is_no_plain_adapter_of_this_model_is_refused(trained: Trained, tmp_path: Path) -> None:
    """With the field that says so; nothing is stored."""
    head = find_head(str(trained("inc_lora"))).after(1)
    whole = find_head(str(trained("inc_lora")))
    adapter, where = adapter_of(whole, 2, tmp_path / "adapter"), options(head, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Path, str]] = [(tmp_path / "empty", "has no adapter_config.json")]
    for number, (config, message) in enumerate(
        (
            ({"use_dora": True}, "use_dora = True"),
            ({"bias": "all"}, "bias = 'all'"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
            ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
            ({"base_model_name_or_path": "someone/else"}, "names the base model 'someone/else'.*--same-base"),
            ({"base_model_name_or_path": None}, "names no base model, the run has .*--same-base"),
            ({"r": 3}, "since r = 3"),
        )
    ):
        cases.append((changed(adapter, tmp_path / str(number), **config), message))
    for folder, message in cases:
        with pytest.raises(SpecError, match=message):
            import_adapter(ForeignAdapter(folder), "snippets", head, where, listeners=[])
    wide = find_head(str(trained("lorac")))
    with pytest.raises(SpecError, match=r"method lorac: .*allowed: inc_lora, o_lora, ella, n_lora, route_lora"):
        import_adapter(ForeignAdapter(adapter), "plots", wide, where, listeners=[])
    for change, message in (
        ({"rank": 1}, r"its rank is 2; allowed: at most method.rank, 1.*--set method.rank=2"),
        ({"targets": ["q_proj"]}, "it adapts 2 modules that the method does not"),
    ):
        spec = head.spec.model_copy(update={"method": head.spec.method.model_copy(update=change)})
        with pytest.raises(SpecError, match=message):
            import_adapter(ForeignAdapter(adapter), "snippets", replace(head, spec=spec), where, listeners=[])
    assert not (tmp_path / "out").exists()
    elsewhere = changed(adapter, tmp_path / "same", base_model_name_or_path="/another/machine")
    done = import_adapter(ForeignAdapter(elsewhere, same_base=True), "snippets", head, where, listeners=[])
    one, other = (whole.store.read(key).pair.b for key in (whole.last, done.head.last))
    assert all(torch.equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"name": "gain_lora", "rank": 2}}, "method gain_lora: a stage of it is no branch"),
        ({"method": {"name": "seq_ft"}}, "method seq_ft: a stage of it is no branch"),
        ({"method": {"name": "inc_lora", "rank": 1}}, "imported.snippets: does not fit the settings of inc_lora"),
        ({"method": {"name": "inc_lora", "rank": 2, "targets": ["v_proj"]}}, "imported.snippets: does not fit"),
        ({"imported": {"plots": "0" * 64}}, "imported.plots: is no task of the order"),
        ({"imported": {"snippets": "0" * 64}}, "next step: take the adapter in again"),
    ],
)
def test_a_run_with_an_adapter_checks_it_before_anything_is_trained(
    change: dict[str, Any], message: str, trained: Trained, tmp_path: Path
) -> None:
    """The spec of a run with an adapter, taken up with other settings: refused in words, and no stage is made."""
    whole = find_head(str(trained("inc_lora")))
    done = import_adapter(
        ForeignAdapter(adapter_of(whole, 2, tmp_path / "adapter")),
        "snippets",
        whole.after(1),
        options(whole, tmp_path / "one"),
        listeners=[],
    )
    values = done.head.spec.model_dump(mode="json") | {"seed": 7} | change
    spec = resolve("laptop", [values])
    before = set(whole.store.stage_keys())
    with pytest.raises(UserError, match=re.escape(message)):
        run_sequence(spec, options(whole, tmp_path / "two"), listeners=[])
    assert set(whole.store.stage_keys()) == before


def test_an_adapter_of_another_base_model_is_no_stage(
    trained: Trained, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """The same shapes and other weights: it was taken in for the first one."""
    whole = find_head(str(trained("inc_lora")))
    done = import_adapter(
        ForeignAdapter(adapter_of(whole, 2, tmp_path / "adapter")),
        "snippets",
        whole.after(1),
        options(whole, tmp_path / "one"),
        listeners=[],
    )
    other = Path(shutil.copytree(model_folders["llama"], tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    values = done.head.spec.model_dump(mode="json")
    values["model"]["name"] = str(other)
    with pytest.raises(SpecError, match=r"imported\.snippets: was taken in for another base model"):
        run_sequence(resolve("laptop", [values]), options(whole, tmp_path / "two"), listeners=[])


def test_a_damaged_adapter_is_named_where_it_lies(trained: Trained, tmp_path: Path) -> None:
    """With what to do about it, and no word of the store."""
    whole = find_head(str(trained("inc_lora")))
    broken = adapter_of(whole, 2, tmp_path / "broken")
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(SpecError) as found:
        import_adapter(
            ForeignAdapter(broken), "snippets", whole.after(1), options(whole, tmp_path / "one"), listeners=[]
        )
    assert str(weights) in str(found.value) and "save the adapter again with PEFT" in str(found.value)
    assert "stage" not in str(found.value)
