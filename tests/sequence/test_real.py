"""The real model and the real data, where they are: a few examples of each, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.state.store import Store
from tests.kit.commands import Commands
from tests.kit.runs import MakeFlags

pytestmark = pytest.mark.slow
LAYOUTS = {"benchmark": "", "o-lora": "CL_Benchmark_mini", "gainlora": "CL_Benchmark_mini_gainlora"}
"""Layout -> its folder in the benchmark data."""


def test_the_packaged_model_runs_two_stages(commands: Commands, flags: MakeFlags, tmp_path: Path) -> None:
    """SmolLM2-135M on real texts, in the precision that this machine is good at: losses of a trained model, a loss that
    falls, sound states."""
    settings = {
        "model__name": "packaged",
        "model__precision": "auto",
        "data__train_examples": 4,
        "data__test_examples": 2,
        "data__max_source_tokens": 32,
        "train__lr": 1e-3,
        "train__epochs": 3,
        "eval__forward": "false",
    }
    done = commands.run(flags(tmp_path / "store", "gain_o", "llama", "roget,snippets", **settings))
    assert done.code == 0, done.err
    losses = [event["loss"] for event in done.events if event["event"] == "step" and event["stage"] == 1]
    assert max(losses) < 8
    assert losses[-1] < losses[0]
    assert Store(str(tmp_path / "store")).verify() == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_1_runs_on_the_real_data(
    commands: Commands, flags: MakeFlags, benchmark_data: Path, tmp_path: Path, layout: str
) -> None:
    """dbpedia, amazon, yahoo, agnews in each public layout on a tiny model, end to end."""
    source = benchmark_data / LAYOUTS[layout]
    done = commands.run(
        flags(tmp_path / "store", "gain_inf", "llama", "1", data__source=source), whole=layout == "o-lora"
    )
    assert done.code == 0, done.err
    assert [event["task"] for event in done.events if event["event"] == "stage_end"] == [
        "dbpedia",
        "amazon",
        "yahoo",
        "agnews",
    ]
    assert "After stage 4/4: AP " in done.out
    assert Store(str(tmp_path / "store")).verify() == []
