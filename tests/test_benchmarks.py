"""The scripts in benchmarks/ that reckon: what the experiments run, what they set against each other, and the figures."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from raycl.comparison.grid import parse_entry
from raycl.sequence.resolve import resolve
from raycl.state.stage_state import Branch, StagePart, StageState
from raycl.testing.probes import serving
from tests.kit.cases import SHAPE
from tests.kit.scripts import script

PARAMS = SHAPE | {"name": "am_lora", "dropout": 0.0}


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The modules."""
    return {name: script(name) for name in ("experiment_list", "experiment_report", "paired_bootstrap", "dilution")}


def test_every_arm_is_a_sequence_and_every_difference_has_its_arms(scripts: dict[str, ModuleType]) -> None:
    """Entries resolve under the common budget with the values they name; differences are between arms of the experiment."""
    listed = scripts["experiment_list"]
    for letter, experiment in listed.EXPERIMENTS.items():
        grid = listed.grid_of(listed.arms_of(experiment), ["std-1"], [0], "DIR")
        entries = [parse_entry(text) for text in grid.methods]
        assert [entry.label for entry in entries] == list(experiment.arms), letter
        specs = [resolve("laptop", [grid.settings, {"order": "std-1"}, entry.layer]) for entry in entries]
        assert len({spec.model_dump_json() for spec in specs}) == len(specs), letter
        assert {spec.data.train_examples for spec in specs} == {200}
        assert {label for pair in experiment.against for label in pair} | set(experiment.rates) <= set(experiment.arms)
    powers = [parse_entry(text).layer["method"] for text in listed.EXPERIMENTS["A"].arms.values()]
    assert [(one["epsilon"], one["energy_power"]) for one in powers] == [(0.995, 1), (0.95, 1), (0.995, 2)] * 2


def row(label: str, order: str, seed: int, **measures: float) -> dict[str, Any]:
    """The figures of a finished sequence."""
    return {"label": label, "order": order, "seed": seed, "LA": 0.0, "FT": 0.0, "AP": 0.0} | measures


def test_differences_are_taken_pair_by_pair(scripts: dict[str, ModuleType]) -> None:
    """Only pairs that both have, whatever the order they come in."""
    rows = [row("a", "1", 0, LA=60.0, FT=3.0), row("b", "1", 1, LA=50.0), row("a", "1", 1, LA=58.0, FT=1.0)]
    rows += [row("b", "1", 0, LA=51.0, FT=5.0), row("a", "2", 0, LA=99.0)]
    (found,) = scripts["experiment_report"].differences(rows, [("a", "b")])
    assert found["pairs"] == [["1", 0], ["1", 1]]
    assert (found["LA"], found["FT"]) == ([9.0, 8.0], [-2.0, 1.0])


def test_a_rate_is_chosen_order_by_order_on_validation_rows(scripts: dict[str, ModuleType]) -> None:
    """Order 1: b after two tasks, a after four (mean of two seeds); order 2: a both times, so the choice brings 0."""
    validated = [
        row("a", "1", 0, AP=50.0) | {"AP after two": 40.0},
        row("a", "1", 1, AP=40.0) | {"AP after two": 40.0},
        row("b", "1", 0, AP=44.0) | {"AP after two": 60.0},
        row("a", "2", 0, AP=44.0) | {"AP after two": 44.0},
        row("b", "2", 0, AP=43.0) | {"AP after two": 43.0},
    ]
    test = [row("a", "1", 0, AP=57.0), row("b", "1", 0, AP=52.0), row("a", "2", 0, AP=1.0), row("b", "2", 0, AP=9.0)]
    found = scripts["experiment_report"].choice(test, validated)
    assert found["after two"] == {"1": "b", "2": "a"} and found["after four"] == {"1": "a", "2": "a"}
    assert found["difference"]["AP"] == [5.0, 0.0]


def test_the_bootstrap_has_the_normal_formulas_interval(scripts: dict[str, ModuleType]) -> None:
    """Two tasks, two pairs with the same examples: mean by hand, interval within 5 % of 1.96 standard errors; answers that
    differ by a constant leave nothing open."""
    draw = np.random.default_rng(3)
    first = [{"x": 100.0 * (draw.random(400) < 0.7), "y": 100.0 * (draw.random(300) < 0.5)} for _ in range(2)]
    second = [{"x": 100.0 * (draw.random(400) < 0.6), "y": 100.0 * (draw.random(300) < 0.5)} for _ in range(2)]
    found = scripts["paired_bootstrap"].resampled(first, second)
    gaps = [{task: a[task] - b[task] for task in a} for a, b in zip(first, second, strict=True)]
    each = [(gap["x"].mean() + gap["y"].mean()) / 2 for gap in gaps]
    assert found["each"] == pytest.approx(each) and found["difference"] == pytest.approx(sum(each) / 2)
    both = {task: (gaps[0][task] + gaps[1][task]) / 4 for task in ("x", "y")}
    error = sum(values.var() / len(values) for values in both.values()) ** 0.5
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * error, rel=0.05)
    flat = scripts["paired_bootstrap"].resampled([{"x": np.full(9, 100.0)}], [{"x": np.zeros(9)}])
    assert (flat["difference"], flat["low"], flat["high"]) == (100.0, 100.0, 100.0)


def test_zero_branches_only_dilute(tiny: Any, scripts: dict[str, ModuleType]) -> None:
    """With 3 of them the first branch's weight is e^z / (1 + e^z + 3), token by token, and nothing else has changed."""
    layers = {
        path: module
        for path, module in tiny.backbone.model.named_modules()
        if path.rsplit(".", 1)[-1] in tiny.backbone.targets
    }
    a = {path: torch.randn(4, one.in_features) / 7 for path, one in layers.items()}
    b = {path: torch.randn(one.out_features, 4) for path, one in layers.items()}
    rows = {f"selector/{path}": 0.05 * torch.randn(2, one.out_features) for path, one in layers.items()}
    state = StageState((StagePart("first", Branch(4, 16.0, a, b), rows),))
    diluted = scripts["dilution"].with_zero_branches(state, 3)
    assert diluted.stage == 4 and state.stage == 1
    with serving(tiny, PARAMS, diluted) as method:
        for path, layer in method.branches.layers.items():
            x = torch.randn(2, 5, layer.in_features)
            output = 4.0 * x @ a[path].T @ b[path].T
            odds = (output @ rows[f"selector/{path}"][1]).exp()
            expected = layer.get_base_layer()(x) + (odds / (1 + odds + 3))[..., None] * output
            with torch.no_grad():
                assert torch.allclose(layer(x), expected, atol=1e-4, rtol=1e-4)
