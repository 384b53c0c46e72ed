"""A state that goes on: a task more is the longer sequence, a task less the shorter one, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycl import Options, SpecError, find_head, resolve, run_sequence
from raycl.sequence.job import make_job
from raycl.use.growing import append, forget
from raycl.use.heads import Head


@pytest.fixture
def head(model_folders: dict[str, Path], tmp_path: Path) -> Any:
    """Runs a short sequence of a method and gives what it ends with; all share a store."""

    def run(method: str, *tasks: str, **train: Any) -> Head:
        folder = tmp_path / f"{method}-{'-'.join(tasks)}"
        data = {"source": "demo", "train_examples": 16, "test_examples": 6, "max_source_tokens": 48}
        layer = {
            "order": ",".join(tasks),
            "model": {"name": str(model_folders["llama"]), "precision": "fp32"},
            "data": data | {"max_target_tokens": 8},
            "method": {"name": method, "rank": 2},
            "train": {"lr": 0.02} | train,
            "workers": 0,
        }
        run_sequence(resolve("laptop", [layer]), options(tmp_path, folder), listeners=[])
        return find_head(str(folder))

    return run


def options(root: Path, folder: Path) -> Options:
    """Everything in one folder."""
    return Options(str(root / "store"), f"sqlite:///{root / 'mlflow.db'}", output=str(folder))


@pytest.mark.parametrize("method", ["inc_lora", "route_lora"])
def test_a_task_more_is_the_longer_sequence(method: str, head: Any, tmp_path: Path) -> None:
    """The same stages and scores; only the new one is trained, with the last value of a setting per stage."""
    first = head(method, "roget", "snippets", lr=[0.02, 0.03])
    stored = set(first.store.stage_keys())
    done = append(first, "plots", options(tmp_path, tmp_path / "grown"), listeners=[])
    assert len(set(first.store.stage_keys()) - stored) == 1
    whole = head(method, "roget", "snippets", "plots", lr=[0.02, 0.03, 0.03])
    assert done.head.stages == whole.stages
    assert list(done.before) == ["roget", "snippets"] and list(done.after) == ["roget", "snippets", "plots"]
    assert done.forgetting == pytest.approx(sum(done.before[one] - done.after[one] for one in done.before) / 2)
    assert find_head(str(tmp_path / "grown")).stages == whole.stages


@pytest.mark.parametrize("method", ["inc_lora", "route_lora"])
def test_a_branch_off_an_earlier_stage_is_a_run_of_its_own(method: str, head: Any, tmp_path: Path) -> None:
    """What goes on from `RUN@1` has the stages and scores of a run that never went the other way; that one stays."""
    first = head(method, "roget", "snippets", "plots", lr=[0.02, 0.03, 0.04])
    early = find_head(f"{first.name}@1")
    assert early.spec.tasks == ["roget"] and early.spec.train.lr == [0.02] and early.stages == first.stages[:1]
    assert early.spec == find_head(f"{first.name}@2").after(1).spec and list(early.records) == ["roget"]
    done = append(early, "plots", options(tmp_path, tmp_path / "grown"), listeners=[])
    other = head(method, "roget", "plots", lr=[0.02, 0.02])
    assert done.head.stages == other.stages and done.head.stages[:1] == first.stages[:1]
    assert find_head(first.name).stages == first.stages == find_head(f"{first.name}@3").stages
    for stage in ("0", "4"):
        with pytest.raises(SpecError, match=r"allowed: .*@1 to @3"):
            find_head(f"{first.name}@{stage}")


def test_a_task_less_is_the_shorter_sequence(head: Any) -> None:
    """The cells of the state without a task are those of a run that never had it, so their scores are too."""
    left = forget(head("route_lora", "roget", "snippets", "plots", lr=[0.02, 0.03, 0.04]), "snippets")
    never = head("route_lora", "roget", "plots", lr=[0.02, 0.04])
    assert left.stages == never.stages and left.keys() == never.keys()
    assert left.spec.tasks == ["roget", "plots"] and left.spec.train.lr == [0.02, 0.04]
    ours, theirs = (make_job(one.spec, one.store).plan.cells_of(2) for one in (left, never))
    assert [cell.key for cell in ours] == [cell.key for cell in theirs]


def test_what_cannot_be_taken_out_or_in_is_said(head: Any, tmp_path: Path) -> None:
    """With the stages that would have to be trained; nothing is changed."""
    summed = head("inc_lora", "roget", "snippets")
    with pytest.raises(SpecError, match=r"1 stages were trained on top.*1 of 1 stages: raycl run --order snippets"):
        forget(summed, "roget")
    with pytest.raises(SpecError, match="the weights have learned it"):
        forget(summed, "snippets")
    with pytest.raises(SpecError, match="allowed: roget, snippets"):
        forget(summed, "plots")
    with pytest.raises(SpecError, match="is all that"):
        forget(head("route_lora", "roget"), "roget")
    where = options(tmp_path, tmp_path / "grown")
    with pytest.raises(SpecError, match=r"is the 1\. of"):
        append(summed, "roget", where)
    with pytest.raises(SpecError, match="unknown"):
        append(summed, "nobody", where)
    other = summed.spec.model_copy(update={"data": summed.spec.data.model_copy(update={"train_examples": 15})})
    with pytest.raises(SpecError, match=r"its stage 1 \(roget\) would be another one"):
        append(Head("x", other, summed.stages, summed.store, {}), "plots", where)
    assert not (tmp_path / "grown").exists()
