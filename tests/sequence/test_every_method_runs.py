"""Every method as a whole sequence in this process: planned, trained, stored, scored, and found again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from raycl.methods.registry import METHODS, method_class, method_params
from raycl.sequence.driver import Options, SequenceResult, run_sequence
from raycl.sequence.resolve import resolve
from raycl.state.store import Store
from tests.kit.cases import CASES
from tests.kit.figures import no_figures
from tests.kit.runs import MakeFlags

TOY = "tests.kit.toy_method:ToyMethod"
ONE_EACH = {case.params["name"]: name for name, case in reversed(CASES.items())}.values()
"""The first case of every method."""
DRAWN = ("gain_lora", "sapt_lora", "tree_lora", "am_lora", "route_lora", "mtl", "seq_ft")
"""Methods whose pages have what those of others have not: gates, attention, choices, selectors, routes, a single stage; and
one without any of it."""
Run = Callable[..., SequenceResult]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all: making one takes longer than a sequence."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture
def run(flags: MakeFlags, tmp_path: Path, tracking: str) -> Run:
    """Runs a small sequence in local mode; its store and output lie in the test's folder."""

    def call(method: dict[str, Any], order: str = "roget,snippets", drawn: bool = False) -> SequenceResult:
        fields = flags.spec("sin_lora", "llama") | {"method": method, "order": order, "workers": 0}
        spec = resolve("laptop", [fields], gpus=0)
        with nullcontext() if drawn else no_figures():
            return run_sequence(spec, Options(str(tmp_path / "store"), tracking, "test", str(tmp_path / "out")))

    return call


@pytest.mark.parametrize("name", sorted(ONE_EACH))
def test_a_sequence_is_trained_stored_scored_and_found_again(run: Run, tmp_path: Path, name: str) -> None:
    """All stages and cells are there, the store is sound, and the same call again trains nothing and reads the same."""
    params = CASES[name].params
    method = method_class(params["name"])
    first = run(params, drawn=params["name"] in DRAWN)
    assert (tmp_path / "out" / "report.html").is_file() == (params["name"] in DRAWN)
    assert first.trained == ([1] if method.joint else [1, 2])
    assert math.isfinite(first.matrix.ap())
    assert math.isnan(first.matrix.forgetting()) == method.joint
    store = Store(str(tmp_path / "store"))
    assert store.verify() == []
    assert all(store.has_scores(cell.key) for cell in first.plan.cells)
    again = run(params)
    assert again.trained == [] and again.matrix == first.matrix


@pytest.mark.parametrize("name", ["per_task", "prog_prompt"])
def test_with_the_task_id_a_score_never_changes(run: Run, tmp_path: Path, name: str) -> None:
    """Task i is always scored with the state after stage i: nothing is forgotten, and no cell is scored twice."""
    result = run(CASES[name].params, "demo")
    for stage in range(1, 5):
        assert result.matrix.seen(4).items() >= result.matrix.seen(stage).items()
    assert result.matrix.forgetting() == 0
    seen = [cell for cell in result.plan.cells if cell.seen]
    assert len({cell.key for cell in seen}) == 4


def test_a_joint_stage_trains_on_all_tasks_at_once(run: Run, tmp_path: Path) -> None:
    """MTL: one stage whose steps are those of the whole sequence, and one row of scores, the last."""
    result = run(CASES["mtl"].params, "demo")
    manifest = Store(str(tmp_path / "store")).manifest(result.plan.stages[0].key)
    assert manifest.task.split("+") == list(result.matrix.tasks)
    assert manifest.log[-2]["steps"] == 4 * 4
    assert result.matrix.last_stage == 4 and not result.matrix.seen(1).keys() - set(result.matrix.tasks)


def test_a_new_method_is_one_file_and_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its file importable and its line in the registry, a method runs, is listed, and has a card."""
    from raycl.report.cards import card, listing

    monkeypatch.setitem(METHODS, "toy", TOY)
    assert method_params("toy")(name="toy").at(1) == {"name": "toy", "size": 0.5}
    result = run({"name": "toy"})
    assert result.trained == [1, 2] and math.isfinite(result.matrix.ap())
    assert "toy" in [row[0] for row in listing()]
    assert "`method.size`" in card("toy", [])


def test_a_branch_describes_itself(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyper-parameters need not know a branch's shape: the stored PEFT configuration is made from the branch."""
    monkeypatch.setitem(METHODS, "fixed", "tests.kit.toy_branch:FixedBranch")
    result = run({"name": "fixed"})
    assert result.trained == [1, 2]
    store = Store(str(tmp_path / "store"))
    key = result.plan.stages[0].key
    config = json.loads((Path(store.folder(key)) / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 4, "CAUSAL_LM")
    assert config["target_modules"] == sorted(store.read(key).branch.a)
