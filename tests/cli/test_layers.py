"""Who wins: preset < published settings < file < flags < --set, for every command."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl.cli.shared import make_layers
from raycl.comparison.grid import grid_of, make_grid
from raycl.errors import SpecError
from raycl.presets import PRESETS
from raycl.sequence import job
from raycl.sequence import resolve as resolving
from raycl.sequence.resolve import resolve
from raycl.spec import RunSpec
from raycl.state.store import Store

LAYERS = ("preset", "published", "file", "flags", "set")
"""Weakest first."""
FIELDS: dict[str, dict[str, Any]] = {
    "order": {"file": "std-1", "flags": "std-2", "set": "std-3"},
    "seed": {"file": 3, "flags": 7, "set": 9},
    "model.name": {"preset": PRESETS["paper"]["model"]["name"], "file": "a/a", "flags": "b/b", "set": "c/c"},
    "data.source": {"file": "/file", "flags": "/flag", "set": "/set"},
    "workers": {"file": 2, "flags": 4, "set": 1},
    "groups": {"file": 2, "flags": 4, "set": 1},
    "train.lr": {"published": 1e-3, "file": 2e-3, "set": 3e-3},
    "train.micro_batch_size": {"preset": 8, "file": 4, "set": 2},
    "method.rank": {"published": 8, "file": 16, "set": 32},
}
"""Field -> the value that each layer gives it, where the layer can."""
PAIRS = [(field, *pair) for field, values in FIELDS.items() for pair in combinations(values, 2)]


@pytest.fixture(autouse=True)
def t5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a T5, without a hub."""
    monkeypatch.setattr(resolving, "family", lambda spec: "t5")


def nested(field: str, value: Any) -> dict[str, Any]:
    """`train.lr` as {"train": {"lr": value}}."""
    for name in reversed(field.split(".")):
        value = {name: value}
    return value


def spec_of(tmp_path: Path, field: str, layers: tuple[str, ...]) -> RunSpec:
    """The run spec where these layers give the field their values, for a method with published settings."""
    values = FIELDS[field]
    config, flags, sets = None, {"method": "o_lora"}, []
    if "file" in layers:
        config = str(tmp_path / "run.yaml")
        Path(config).write_text(yaml.safe_dump(nested(field, values["file"])))
    if "flags" in layers:
        flags[field.partition(".")[0]] = values["flags"]
    if "set" in layers:
        sets.append(f"{field}={values['set']}")
    if field != "order":
        flags.setdefault("order", "std-1")
    return resolve("paper", make_layers(config, sets, flags).stack)


def value_of(spec: RunSpec, field: str) -> Any:
    """The field's value."""
    value: Any = spec
    for name in field.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(("field", "weaker", "stronger"), PAIRS, ids=[f"{f}: {a} < {b}" for f, a, b in PAIRS])
def test_the_stronger_layer_wins(tmp_path: Path, field: str, weaker: str, stronger: str) -> None:
    """For every pair of layers that can give the field a value; the weaker one's value stands where it is alone."""
    assert value_of(spec_of(tmp_path, field, (weaker, stronger)), field) == FIELDS[field][stronger]
    if weaker not in ("preset", "published") or "published" not in FIELDS[field]:
        assert value_of(spec_of(tmp_path, field, (weaker,)), field) == FIELDS[field][weaker]


def test_another_method_replaces_the_files_method_whole(tmp_path: Path) -> None:
    """O-LoRA's lambda1 in the file is no unknown field of SinLoRA; a file without a name keeps its fields."""
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"order": "std-1", "method": {"name": "o_lora", "lambda1": 0.3, "rank": 4}}))
    same = resolve("laptop", make_layers(str(config), None, {"method": "o_lora"}).stack).method
    assert (same.lambda1, same.rank) == (0.3, 4)
    other = resolve("laptop", make_layers(str(config), ["method.alpha=5"], {"method": "sin_lora"}).stack).method
    assert (other.name, other.rank, other.alpha) == ("sin_lora", 8, 5)
    config.write_text(yaml.safe_dump({"order": "std-1", "method": {"rank": 4}}))
    assert resolve("laptop", make_layers(str(config), None, {"method": "sin_lora"}).stack).method.rank == 4


def test_a_comparison_takes_order_and_seed_from_the_file_unless_flags_name_them(tmp_path: Path) -> None:
    """Both were ignored once; --set wins over both."""
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"order": "std-1", "seed": 3, "train": {"lr": 0.1}}))

    def grid(sets: list[str] | None = None, **named: Any) -> tuple[list[str], list[int]]:
        layers = make_layers(str(config), sets, {})
        made = grid_of(layers.stack, {"methods": ["o_lora"], **named})
        assert made.settings == {"train": {"lr": 0.1}}
        return made.orders, made.seeds

    assert grid() == (["std-1"], [3])
    assert grid(orders=["std-2"], seeds=[7, 8]) == (["std-2"], [7, 8])
    assert grid(["order=std-3", "seed=9"], orders=["std-2"], seeds=[7]) == (["std-3"], [9])


def test_in_a_comparison_set_wins_over_a_methods_own_settings_and_those_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folders: dict[str, Path]
) -> None:
    """The one order of layers holds there too."""
    monkeypatch.setattr(job, "known_fingerprint", lambda model: "0" * 64)
    config = tmp_path / "run.yaml"
    data = {"source": "demo", "train_examples": 4, "test_examples": 2}
    fields = {"order": "roget", "data": data, "method": {"rank": 3, "alpha": 9}}
    config.write_text(yaml.safe_dump(fields | {"model": {"name": str(model_folders["llama"])}}))

    def ranks(sets: list[str]) -> list[tuple[int, float]]:
        layers = make_layers(str(config), sets, {})
        grid = grid_of(layers.stack, {"methods": ["a=o_lora:rank=4", "sin_lora"]}, preset="laptop")
        cells = make_grid(grid, 0, Store(str(tmp_path / "store")))
        return [(cell.job.spec.method.rank, cell.job.spec.method.alpha) for cell in cells if cell.job]

    assert ranks([]) == [(4, 9), (3, 9)]
    assert ranks(["method.rank=5"]) == [(5, 9), (5, 9)]


def test_a_file_alone_does_not_let_code_run(tmp_path: Path) -> None:
    """Whoever wrote the file: `--allow-code` must stand on the command line."""
    (tmp_path / "best.yaml").write_text("data: {allow_code: true}\n")
    with pytest.raises(SpecError, match="--allow-code"):
        make_layers(str(tmp_path / "best.yaml"), None, {})
    layers = make_layers(str(tmp_path / "best.yaml"), None, {"allow_code": True})
    assert layers.said("data") == {"allow_code": True}


def test_a_file_s_preset_counts_where_the_flag_leaves_it_open(tmp_path: Path) -> None:
    """It was not heard before; a flag wins over it, and `none`, which a written spec may hold, says nothing."""
    for said, flag, expected in (("demo", "auto", "demo"), ("demo", "laptop", "laptop"), ("none", "auto", "laptop")):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"preset": said, "order": "std-1"}))
        assert resolve(flag, make_layers(str(path), None, {}).stack).preset == expected


@pytest.mark.parametrize("name", ["preset=paper", "tasks=[sst2]"])
def test_what_only_a_flag_can_say_is_refused_in_set(name: str) -> None:
    """It was overwritten without a word."""
    with pytest.raises(SpecError, match="next step: give `--"):
        make_layers(None, [name], {})


def test_tasks_of_another_order_are_refused_and_those_of_a_written_spec_are_not(tmp_path: Path) -> None:
    """A spec that raycl wrote repeats its order's tasks; with another --order these are the other order's."""
    path = tmp_path / "run.yaml"
    layers = [{"order": "std-1"}]
    whole = resolve("laptop", layers).model_dump(mode="json")
    path.write_text(yaml.safe_dump(whole))
    assert resolve("auto", make_layers(str(path), None, {}).stack).tasks == whole["tasks"]
    assert resolve("auto", make_layers(str(path), None, {"order": "std-2"}).stack).order == "std-2"
    path.write_text(yaml.safe_dump({"tasks": ["agnews"]}))
    with pytest.raises(SpecError, match=r"tasks: \['agnews'\] are not those of the order"):
        resolve("laptop", make_layers(str(path), None, {"order": "std-1"}).stack)


def test_an_order_may_be_a_list(tmp_path: Path) -> None:
    """As YAML writes one."""
    assert resolve("laptop", [{"order": ["agnews", "amazon"]}]).tasks == ["agnews", "amazon"]


def test_all_problems_are_said_at_once() -> None:
    """A wrong order, a wrong preset and wrong fields."""
    with pytest.raises(SpecError) as raised:
        resolve("fast", [{"order": "std-9", "seed": -1, "train": {"lrr": 1}}])
    for words in ("'std-9'", "--preset 'fast'", "seed", "train.lrr: unknown field (did you mean 'lr'?)"):
        assert words in str(raised.value)
