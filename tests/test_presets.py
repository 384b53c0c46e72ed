"""Presets, overrides and the layers a spec is put together from."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raycl.errors import SpecError
from raycl.methods.registry import METHODS
from raycl.presets import merge, parse_override, read_config
from raycl.sequence import resolve as resolving
from raycl.sequence.resolve import resolve
from raycl.spec import RunSpec
from raycl.tasks.catalogue import open_catalogue


@pytest.fixture
def known_family(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every model one of a given family, without a hub."""
    return lambda name: monkeypatch.setattr(resolving, "family", lambda spec: name)


def resolved(preset: str = "laptop", order: str = "std-1", gpus: int = 0, *layers: dict[str, Any]) -> RunSpec:
    """A spec of an order with some layers on top."""
    return resolve(preset, [{"order": order}, *layers], gpus)


@pytest.mark.parametrize(
    ("text", "nested"),
    [
        ("method.rank=8", {"method": {"rank": 8}}),
        ("seed=3", {"seed": 3}),
        ("train.lr=0.5", {"train": {"lr": 0.5}}),
        ("train.lr=[0.5, 0.25, 5]", {"train": {"lr": [0.5, 0.25, 5]}}),
        ("method.targets=[q_proj, o_proj]", {"method": {"targets": ["q_proj", "o_proj"]}}),
        ("eval.forward=false", {"eval": {"forward": False}}),
        ("data.train_examples=null", {"data": {"train_examples": None}}),
        ("data.source=/a=b", {"data": {"source": "/a=b"}}),
        (" model.name =packaged", {"model": {"name": "packaged"}}),
    ],
)
def test_an_override_is_a_field_and_a_yaml_value(text: str, nested: dict[str, Any]) -> None:
    """Numbers, lists, none and text arrive as what they look like."""
    assert parse_override(text) == nested


@pytest.mark.parametrize("text", ["method.rank", "=8", ".rank=8", "method.=8", "method..rank=8", "rank=[1, ", ""])
def test_a_malformed_override_says_what_is_wrong(text: str) -> None:
    """The message holds the text itself."""
    with pytest.raises(SpecError, match=r"--set"):
        parse_override(text)


@given(st.text(max_size=30))
def test_any_text_is_an_override_or_a_spec_error(text: str) -> None:
    """No text ends in another exception."""
    with contextlib.suppress(SpecError):
        assert isinstance(parse_override(text), dict)


def test_an_unknown_field_in_an_override_is_reported() -> None:
    """An override goes through the same validation as everything else."""
    with pytest.raises(SpecError, match=r"train\.rate: unknown field"):
        resolved("laptop", "std-1", 0, parse_override("train.rate=1"))


@pytest.mark.parametrize("text", ["train.lr=1e-4", "train.lr=1.0e-4", "train.lr=0.0001"])
def test_a_small_rate_may_be_written_in_any_way(text: str) -> None:
    """YAML 1.1 takes 1e-4 for text; the field is a number all the same, also inside a list."""
    assert resolved("laptop", "std-1", 0, parse_override(text)).train.lr == 1e-4
    listed = parse_override("train.lr=[1e-4, 1e-3, 2, 0.5]")
    assert resolved("laptop", "std-1", 0, listed).train.lr == [1e-4, 1e-3, 2, 0.5]


@pytest.mark.parametrize("text", ["method.alpha=.inf", "train.weight_decay=.nan", "train.lr=[1, .inf, 1, 1]"])
def test_a_number_must_be_finite(text: str) -> None:
    """Infinity and NaN have no place in a key."""
    with pytest.raises(SpecError, match="finite"):
        resolved("laptop", "std-1", 0, {"method": {"name": "o_lora"}}, parse_override(text))


def test_a_text_that_looks_like_a_number_stays_text_where_text_is_asked_for() -> None:
    """A model folder or task may be named like a number."""
    for revision in ("1234", "12e4567", "nan"):
        spec = resolved("laptop", "std-1", 0, parse_override(f"model.revision='{revision}'"))
        assert spec.model.revision == revision


def test_later_layers_win_field_by_field() -> None:
    """Preset, then file, then flag, then --set: each changes only the fields it names."""
    layers = [
        {"train": {"lr": 1e-3, "epochs": 3, "batch_size": 16}, "seed": 1},
        {"train": {"epochs": 4}, "seed": 2},
        {"train": {"batch_size": 32}},
    ]
    spec = resolved("laptop", "std-1", 0, *layers)
    assert (spec.train.lr, spec.train.epochs, spec.train.batch_size, spec.seed) == (1e-3, 4, 32, 2)
    assert spec.train.log_every == 4
    assert spec.preset == "laptop"


def test_merging_leaves_the_layers_as_they_were() -> None:
    """A preset is never changed by a run."""
    weak, strong = {"a": {"b": [1], "c": 2}}, {"a": {"c": 3}}
    merged = merge(weak, strong)
    merged["a"]["b"].append(2)
    assert merged == {"a": {"b": [1, 2], "c": 3}}
    assert (weak, strong) == ({"a": {"b": [1], "c": 2}}, {"a": {"c": 3}})


def test_a_given_method_replaces_the_default_one() -> None:
    """No hyper-parameter of the default method is left behind."""
    assert resolved("laptop", "std-1", 0, {"method": {"name": "sin_lora"}}).method.name == "sin_lora"
    assert resolved().method.name == "gain_lora"


def test_auto_is_laptop_without_and_paper_with_a_gpu(known_family: Any) -> None:
    """The machine decides unless the user does."""
    known_family("t5")
    assert resolved("auto").preset == "laptop"
    assert resolved("auto", "std-1", 2).preset == "paper"
    assert resolved("laptop", "std-1", 2).preset == "laptop"


def test_an_unknown_preset_lists_the_known_ones() -> None:
    """The message names the value and what is allowed."""
    with pytest.raises(SpecError, match=r"--preset 'fast': unknown; allowed: auto, laptop, paper"):
        resolved("fast")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["t5", "llama", "qwen2"])
@pytest.mark.parametrize("order", ["std-1", "std-3", "long-4", "long-6", "sni-1", "demo", "dbpedia,agnews"])
def test_the_paper_preset_is_valid_everywhere(known_family: Any, method: str, family: str, order: str) -> None:
    """Every method's published settings validate for every family and order, lists included."""
    known_family(family)
    spec = resolved("paper", order, 1, {"method": {"name": method}})
    assert spec.method.name == method
    assert spec.train.micro_batch_size == 8
    assert spec.train.batch_size % spec.train.micro_batch_size == 0


@pytest.mark.parametrize("order", [*open_catalogue().orders, "amazon,cb"])
@pytest.mark.parametrize("method", METHODS)
def test_the_laptop_preset_is_valid_everywhere(method: str, order: str) -> None:
    """Every method and order runs with the defaults."""
    spec = resolved("laptop", order, 0, {"method": {"name": method}})
    assert spec.model.name == "packaged"
    assert spec.data.source == ("demo" if order == "demo" else "hub")


def test_o_lora_has_its_weights_per_task_on_order_6(known_family: Any) -> None:
    """The released script's lists: no penalty at first, 0.5 for eight tasks, then 5; two epochs of MNLI."""
    known_family("t5")
    spec = resolved("paper", "6", 1, {"method": {"name": "o_lora"}})
    assert spec.order == "long-6"
    assert spec.method.lambda1 == [0.0] + [0.5] * 8 + [5.0] * 6
    assert spec.method.lambda2 == [0, 0, 0, 0, 0.1, 0.1, 0.3, 0, 0.1, 0, 0, 0.1, 0, 0.1, 0.3]
    assert spec.train.epochs == [1, 1, 2] + [1] * 12
    assert (spec.train.lr, spec.train.batch_size) == (1e-3, 64)
    assert spec.tasks[2] == "mnli"


def test_the_papers_settings_give_way_to_what_the_user_says(known_family: Any) -> None:
    """A list of the paper is replaced whole by a single value."""
    known_family("t5")
    spec = resolved("paper", "6", 1, {"method": {"name": "o_lora"}}, parse_override("method.lambda1=0.1"))
    assert spec.method.lambda1 == 0.1
    assert len(spec.method.lambda2) == 15


@pytest.mark.parametrize(("family", "lr", "length"), [("t5", 3e-4, 512), ("llama", 5e-5, 1024)])
def test_the_family_decides_the_papers_settings(known_family: Any, family: str, lr: float, length: int) -> None:
    """T5 and Llama have settings of their own."""
    known_family(family)
    spec = resolved("paper", "std-1", 1, {"method": {"name": "gain_lora"}})
    assert (spec.train.lr, spec.data.max_source_tokens) == (lr, length)


def test_a_config_file_is_a_layer(tmp_path: Path) -> None:
    """Nested fields of a YAML file arrive as they are, numbers such as 1e-4 included."""
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  lr: 1e-4\n  epochs: [1, 2, 3, 4]\nmethod: {name: o_lora, rank: 4}\n")
    spec = resolved("laptop", "std-1", 0, read_config(str(path)))
    assert (spec.train.lr, spec.train.epochs, spec.method.rank) == (1e-4, [1, 2, 3, 4], 4)


@pytest.mark.parametrize(
    "content", [b"a: [1", b"- 1\n- 2", b"\xff\xfe\x00", b"", b"3", b"!!python/object:os.system {}"]
)
def test_a_bad_config_file_is_a_spec_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """Not YAML, not a mapping, not text, or a YAML tag that would build a Python object."""
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"run\.yaml"):
        read_config(str(path))


def test_a_missing_config_file_is_a_spec_error(tmp_path: Path) -> None:
    """A folder is no file either."""
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(SpecError, match="cannot be read"):
            read_config(str(path))


def test_the_recorded_spec_is_a_config_file_of_the_same_run(tmp_path: Path) -> None:
    """spec.json of a run, given back with --config, is the same run."""
    spec = resolved("laptop", "std-2", 0, {"method": {"name": "o_lora", "lambda1": [0, 1, 2, 3]}})
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    assert resolved("laptop", "std-2", 0, read_config(str(path))) == spec


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"source": "demo"}}, "'demo' does not hold dbpedia of the order 'std-1'"),
        ({"train": {"checkpoint_every": 5, "zero_stage": 2}}, "train.checkpoint_every: 5"),
        ({"train": {"engine": "torch", "zero_stage": 2}}, "train.zero_stage: 2 works with train.engine=deepspeed"),
        ({"train": {"keep": "best", "holdout": 0.1, "zero_stage": 3}}, "train.keep: 'best'"),
        (
            {"train": {"optimizer": "muon", "zero_stage": 1}},
            "train.optimizer: 'muon' works with train.zero_stage=0 only",
        ),
        (
            {"train": {"optimizer": "muon"}, "method": {"name": "migu"}},
            "train.optimizer: 'muon' moves the matrices of LoRA",
        ),
        ({"train": {"optimizer": "muon"}, "method": {"name": "seq_ft"}}, "and seq_ft with these settings trains none"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    """Each with the fields and their values."""
    with pytest.raises(SpecError) as caught:
        resolved("laptop", "std-1", 0, changes)
    assert words in str(caught.value)
