"""The pages about the methods: complete, current, and honest about what is borrowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.analysis.published import TABLES, tables_of
from raycl.methods.registry import METHODS, method_class
from raycl.report.cards import card, cards, listing, markdown_table
from tests.kit.cli import invoke

ROOT = Path(__file__).parents[2]
WANTED = (
    *("seq_ft", "sin_lora", "inc_lora", "o_lora", "inf_lora", "gain_lora", "replay", "ewc", "l2p", "lfpt5", "am_lora"),
    *("slao", "prog_prompt", "per_task", "mtl", "sapt_lora", "c_lora", "lorac", "merging", "migu", "tree_lora", "lwf"),
    *("route_lora", "ella", "n_lora", "osf", "wise", "ogd", "gem", "mbpa", "self_distill"),
)
"""The methods that raycl promises."""


def test_the_pages_are_current() -> None:
    """docs/methods is what the code and the measured cells make; `make cards` writes it anew."""
    made = cards(ROOT / "benchmarks" / "results" / "quality")
    kept = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert kept.keys() == made.keys()
    assert [name for name in made if kept[name] != made[name]] == [], "run `make cards`"


def test_every_promised_method_is_there() -> None:
    """The registry holds them all."""
    assert set(WANTED) <= set(METHODS)


def test_the_listing_names_every_method_with_all_it_should_say() -> None:
    """`python -m raycl methods`: paper, what trains, growth, task id at test, replayed data."""
    shown = invoke("methods").output
    for name, title, paper, trains, growth, task_id, replays in listing():
        assert all((title, paper, trains, growth, replays)) and task_id in ("yes", "no")
        assert name in shown and title in shown and paper in shown
    needing = {row[0] for row in listing() if row[5] == "yes"}
    assert needing == {"per_task", "prog_prompt"}
    replaying = {row[0]: row[6] for row in listing() if row[6] != "no"}
    assert replaying["replay"] == "real" and replaying["lfpt5"] == "pseudo" and replaying["mtl"] == "all data"


@pytest.mark.parametrize("name", METHODS)
def test_a_card_holds_every_hyper_parameter_and_the_carried_state(name: str) -> None:
    """Nothing of the code is missing on the page, and what was not measured is said."""
    text = card(name, [])
    method = method_class(name)
    assert all(f"`method.{field}`" in text for field in method.Params.model_fields if field != "name")
    assert all(f"| {kind} |" in text for kind in method.about.state)
    assert "## Measured\n\nNot yet." in text
    assert ("(borrowed)" in text) == bool(tables_of(name))


def test_measured_and_borrowed_figures_stay_apart() -> None:
    """A measured cell shows in its own section, with its setting."""
    stage = {"steps": 10, "seconds": {"train": 5.0}, "trainable_parameters": 1234, "bytes": 2_000_000}
    cell = {"variant": "o_lora", "order": "1", "seed": 0, "lr": 1e-3, "measures": {"AP": 61.25, "FT": None}}
    text = card("o_lora", [cell | {"stages": [stage, stage], "method": {"name": "o_lora"}}])
    measured, borrowed = text.split("## Reference figures (borrowed)")
    assert "| o_lora | 1 | 0 | 0.001 | 61.2 | - | 1,234 | 2.00 | 0.50 |" in measured
    assert "75.4" in borrowed and "75.4" not in measured and "61.2" not in borrowed


def test_borrowed_rows_fit_their_columns() -> None:
    """Every row has a value per column, and its name begins with a method of raycl."""
    for table in TABLES:
        assert table.source and table.setting
        for name, values in table.rows.items():
            assert len(values) == len(table.columns), (table.source, name)
            assert name.split(" ")[0].rstrip(",") in METHODS


def test_a_table_keeps_bars_inside_cells_apart() -> None:
    """|x| in a cell must not end it."""
    assert markdown_table(("a",), [("|x|",)]) == "| a |\n| --- |\n| \\|x\\| |"
