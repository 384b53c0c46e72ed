"""What a comparison is made of: method settings as text, shared settings, cells that cannot run; how a cluster is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycl.cluster import Share, share_out
from raycl.comparison.grid import GridSpec, grid_of, make_entries, make_grid, make_grid_spec, parse_entry
from raycl.errors import SpecError
from raycl.state.store import Store
from tests.kit.streams import TEAM, write_csv, write_stream


def test_a_method_is_named_with_its_settings() -> None:
    """Name, label, lists, numbers, and the run spec's own fields."""
    assert parse_entry("o_lora").layer == {"method": {"name": "o_lora"}}
    entry = parse_entry("gain_lora:over=inf_lora,epsilon=0.99,gate_hidden=[8, 4],train.lr=1e-3")
    assert entry.label == "gain_lora:over=inf_lora,epsilon=0.99,gate_hidden=[8, 4],train.lr=1e-3"
    assert entry.layer["method"] == {"name": "gain_lora", "over": "inf_lora", "epsilon": 0.99, "gate_hidden": [8, 4]}
    assert entry.layer["train"] == {"lr": "1e-3"}
    assert (parse_entry("G=gain_lora:over=o_lora").label, parse_entry("G=gain_lora").method) == ("G", "gain_lora")


def test_white_space_around_an_entry_is_no_part_of_its_name() -> None:
    assert parse_entry(" o_lora : rank=4 ").label == "o_lora: rank=4"
    assert parse_entry(" o_lora ").label == "o_lora"


def test_orders_of_a_stream_of_ones_own(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its orders have their names, and no order means all its tasks."""
    write_csv(tmp_path / "t.csv")
    tasks = [{**TEAM, "name": name, "data": "t.csv"} for name in ("one", "two")]
    stream = write_stream(tmp_path, *tasks, orders={"back": ["two", "one"]})
    fields = settings | {"method": {}, "data": {"stream": stream, "train_examples": 4, "test_examples": 2}}
    for orders, found in ((["back"], ["two", "one"]), ([], ["one", "two"])):
        grid = GridSpec(methods=["o_lora"], orders=orders, preset="laptop", settings=fields, bounds=False)
        (cell,) = make_grid(grid, 0, Store("/nowhere"))
        assert cell.job is not None, cell.error
        assert [stage.task for stage in cell.job.plan.stages] == found


def test_a_class_is_named_with_its_settings_too() -> None:
    """`package.module:Class`, then settings; in tables it is called by its class, or by a label."""
    entry = parse_entry("my.ema:Ema:rank=4,train.lr=1e-3")
    assert (entry.label, entry.method) == ("Ema:rank=4,train.lr=1e-3", "my.ema:Ema")
    assert entry.layer == {"method": {"name": "my.ema:Ema", "rank": 4}, "train": {"lr": "1e-3"}}
    assert (parse_entry("my.ema:Ema").label, parse_entry("E=my.ema:Ema").label) == ("Ema", "E")
    assert parse_entry("E=my.ema:Ema:rank=4").method == "my.ema:Ema"
    with pytest.raises(SpecError, match="'rank' is not FIELD=VALUE"):
        parse_entry("my.ema:Ema:rank")
    with pytest.raises(SpecError, match="expected NAME"):
        parse_entry("my.ema:Ema:")


@pytest.mark.parametrize("text", ["", ":rank=3", "o_lora:", "o_lora:rank", "o_lora:=3", "o_lora: =3", "a=:rank=3"])
def test_what_is_no_method_is_refused(text: str) -> None:
    """With the text and an example."""
    with pytest.raises(SpecError, match="--method"):
        parse_entry(text)


def test_bounds_are_added_once() -> None:
    """All three, but not one that is compared anyway; a label stands once."""
    entries = make_entries(GridSpec(methods=["sin_lora", "o_lora"], bounds=True))
    assert [(one.label, one.bound) for one in entries] == [
        ("sin_lora", False),
        ("o_lora", False),
        ("per_task", True),
        ("mtl", True),
    ]
    with pytest.raises(SpecError, match="o_lora stands twice"):
        make_entries(GridSpec(methods=["o_lora", "o_lora"]))
    with pytest.raises(SpecError, match="at least one method"):
        make_entries(GridSpec(methods=[]))


@pytest.fixture
def settings(model_folders: dict[str, Path]) -> dict[str, Any]:
    """Small settings without a method."""
    data = {"source": "demo", "train_examples": 4, "test_examples": 2}
    return {"model": {"name": str(model_folders["llama"])}, "data": data, "method": {"rank": 2, "epsilon": 0.9}}


def test_cells_are_planned_and_bad_ones_fail_alone(settings: dict[str, Any]) -> None:
    """Pairs outermost; shared method settings reach the methods that know them; a wrong value fails its own cells only."""
    methods = ["o_lora", "inf_lora", "gain_lora:over=none_such", "no_lora"]
    grid = GridSpec(
        methods=methods, orders=["roget,snippets", "snippets"], seeds=[0, 1], preset="laptop", settings=settings
    )
    cells = make_grid(grid, 0, Store("/nowhere"))
    assert len(cells) == 16
    assert [cell.entry.label for cell in cells[:4]] == methods
    assert len({(cell.order, cell.seed) for cell in cells[:4]}) == 1
    good = [cell for cell in cells if cell.error is None]
    assert {cell.entry.label for cell in good} == {"o_lora", "inf_lora"}
    specs = {cell.entry.label: cell.job.spec.method for cell in good if cell.job}
    assert specs["o_lora"].rank == specs["inf_lora"].rank == 2
    assert specs["inf_lora"].epsilon == 0.9
    assert {len(cell.job.plan.stages) for cell in good if cell.job} == {1, 2}
    assert all((cell.job.spec.order, cell.job.spec.seed) == (cell.order, cell.seed) for cell in good if cell.job)
    assert {(cell.order, cell.seed) for cell in good} == {
        (f"custom:{order}", seed) for order in ("roget,snippets", "snippets") for seed in (0, 1)
    }
    errors = {cell.entry.label: cell.error for cell in cells if cell.error}
    assert "method.over" in errors["gain_lora:over=none_such"]
    assert "unknown method" in errors["no_lora"]


def test_the_grid_of_a_command_line() -> None:
    """The file's order and seed give way to flags that may be repeated, these to --set; each sequence has one worker,
    whatever is said of workers; the rest is shared, and --set wins over all."""
    file = {"order": "std-2", "seed": 4, "workers": 3, "train": {"lr": 0.1, "epochs": 2}}
    flags = {"train": {"epochs": 3}}
    sets = {"workers": 2, "train": {"epochs": 4}}
    grid = grid_of([file, flags, sets], {"methods": ["o_lora"], "orders": None, "seeds": [7, 8]}, True, "laptop")
    assert grid == GridSpec(
        methods=["o_lora"],
        orders=["std-2"],
        seeds=[7, 8],
        bounds=True,
        preset="laptop",
        settings={"train": {"lr": 0.1, "epochs": 3}},
        overrides={"train": {"epochs": 4}},
    )
    assert grid_of([file, flags, sets | {"order": 5, "seed": 9}], {"orders": ["1"], "seeds": [7]}) == GridSpec(
        methods=[],
        orders=["5"],
        seeds=[9],
        settings={"train": {"lr": 0.1, "epochs": 3}},
        overrides={"train": {"epochs": 4}},
    )
    assert grid_of([{}, {}, {}], {}) == GridSpec(methods=[]) and GridSpec(methods=[]).orders == []
    assert file["workers"] == 3 and sets["workers"] == 2


def test_layers_of_a_cell_win_in_their_order(settings: dict[str, Any]) -> None:
    """Shared settings, then the cell's order and seed, then the entry's own fields, then what wins over all."""
    shared = settings | {"method": {"rank": 9}, "seed": 7, "train": {"lr": 0.1, "epochs": 2, "batch_size": 4}}
    grid = GridSpec(
        methods=["o_lora:rank=3,train.lr=0.2,train.epochs=3"],
        orders=["snippets"],
        seeds=[1],
        preset="laptop",
        settings=shared,
        overrides={"train": {"epochs": 5}, "method": {"alpha": 2.0}},
    )
    (cell,) = make_grid(grid, 0, Store("/nowhere"))
    assert cell.job is not None, cell.error
    spec = cell.job.spec
    assert (spec.seed, spec.method.rank, spec.method.alpha) == (1, 3, 2.0)
    assert (spec.train.lr, spec.train.epochs, spec.train.batch_size) == (0.2, 5, 4)


def test_what_is_wrong_with_the_whole_grid_is_refused(settings: dict[str, Any]) -> None:
    """A pair named twice, a setting no method knows, an error that all cells share, a wrong type."""
    with pytest.raises(SpecError, match="stands twice"):
        make_grid(GridSpec(methods=["o_lora"], orders=["1", "std-1"], settings=settings), 0, Store("/nowhere"))
    with pytest.raises(SpecError, match=r"method\.rang: no method"):
        make_grid(GridSpec(methods=["o_lora"], settings=settings | {"method": {"rang": 2}}), 0, Store("/nowhere"))
    with pytest.raises(SpecError, match="no sequence of the comparison can run"):
        make_grid(
            GridSpec(methods=["inf_lora"], preset="laptop", settings=settings | {"train": {"lr": -1}}),
            0,
            Store("/nowhere"),
        )
    with pytest.raises(SpecError, match=r"seeds\.0"):
        make_grid_spec({"methods": ["o_lora"], "seeds": [-1]})


@pytest.mark.parametrize(
    ("nodes", "cells", "most", "expected"),
    [
        ([{"CPU": 8}], 20, None, Share(8, 1, 0)),
        ([{"CPU": 8}], 20, 3, Share(3, 2, 0)),
        ([{"CPU": 2}], 1, None, Share(1, 2, 0)),
        ([{"CPU": 2}, {"CPU": 2}], 1, None, Share(1, 2, 0)),
        ([{"CPU": 16, "GPU": 4}], 20, None, Share(4, 4, 1)),
        ([{"CPU": 0}, {"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}], 20, None, Share(8, 4, 1)),
        ([{"CPU": 2, "GPU": 4}], 20, None, Share(2, 1, 1)),
        ([{}], 4, None, Share(1, 1, 0)),
    ],
)
def test_a_cluster_is_shared_out(nodes: list[dict[str, float]], cells: int, most: int | None, expected: Share) -> None:
    """One process per GPU or CPU, never more than cells; each fits on one machine."""
    assert share_out(nodes, cells, most) == expected
