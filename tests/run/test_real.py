"""The real model and the real data, where they are: a few examples of each, end to end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import Commands
from conftest import MakeFlags

from raycl.state.store import Store

pytestmark = pytest.mark.slow
LAYOUTS = {"benchmark": "", "o-lora": "CL_Benchmark_mini", "gainlora": "CL_Benchmark_mini_gainlora"}
"""Layout -> its folder in the benchmark data."""


@pytest.fixture(scope="module")
def benchmark_data() -> Path:
    """The folder with the real benchmark data, or a skip."""
    default = Path(__file__).resolve().parents[2] / ".." / "shared" / "benchmark"
    folder = Path(os.environ.get("RAYCL_TEST_BENCHMARK", default)).resolve()
    if not (folder / "manifest.json").is_file():
        pytest.skip("no benchmark data: set RAYCL_TEST_BENCHMARK to a folder in the benchmark layout")
    return folder


def test_the_packaged_model_runs_two_stages(commands: Commands, flags: MakeFlags, tmp_path: Path) -> None:
    """SmolLM2-135M in bf16 on real texts: losses of a trained model, a loss that falls, sound states."""
    settings = {
        "model__name": "packaged",
        "model__precision": "bf16",
        "data__train_examples": 8,
        "data__test_examples": 2,
        "data__max_source_tokens": 64,
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
