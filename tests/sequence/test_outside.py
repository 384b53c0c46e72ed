"""Sequences of a method from outside of the repository: what names their stages, and how they reach another process."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raycl.comparison.driver import HowToRun, run_comparison
from raycl.comparison.grid import GridSpec
from raycl.errors import SetupError
from raycl.methods.sources import source_hash
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.job import SentJob, make_job
from raycl.sequence.names import run_name, run_title
from raycl.sequence.resolve import resolve
from raycl.spec import RunSpec
from raycl.state.store import Store
from tests.kit.outside import PLACE, forget, forgotten, install, write_package
from tests.kit.runs import MakeFlags

Resolve = Callable[..., RunSpec]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which holds the package, and is on Python's path; what is imported from it is forgotten."""
    write_package(tmp_path)
    with forgotten("far_methods"):
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        yield tmp_path


@pytest.fixture
def small(flags: MakeFlags) -> Resolve:
    """Specs of small sequences, with any fields."""

    def call(name: str = PLACE, **fields: Any) -> RunSpec:
        base = flags.spec("sin_lora", "llama") | {"method": {"name": name}, "order": "roget,snippets"}
        return resolve("laptop", [base | fields])

    return call


def stage_keys(spec: RunSpec, place: Path) -> list[str]:
    """The keys of a spec's stages."""
    return [stage.key for stage in make_job(spec, Store(str(place / "store"))).plan.stages]


def test_it_runs_and_what_it_leaves_has_names_that_any_file_system_takes(here: Path, small: Resolve) -> None:
    """Two stages; the recipe holds class and source, the spec file what the user wrote, folders and runs the class only."""
    spec = small()
    options = Options(str(here / "store"), f"sqlite:///{here / 'mlflow.db'}", "test")
    result = run_sequence(spec, options)
    assert result.trained == [1, 2]
    recipe = Store(str(here / "store")).manifest(result.plan.stages[0].key).recipe
    assert recipe["method"] == {"name": PLACE, "source": source_hash("far_methods.vector", here), "size": 0.5}
    assert json.loads(result.outputs["spec.json"].read_text())["method"]["name"] == PLACE
    assert run_sequence(spec, options).trained == []
    assert run_name(spec).startswith("custom-2-Vector-seed0-") and ":" not in run_name(spec)
    assert run_title(spec).startswith("Vector · ")
    assert result.outputs["spec.json"].parent.name == run_name(spec)


def test_another_source_makes_other_stages_and_another_run(here: Path, small: Resolve) -> None:
    """A changed neighbour is another method, with stages, a folder and an MLflow run of its own. A way of naming is not."""
    install(here, "far-away", {"vector": PLACE})
    before, name = stage_keys(small(), here), run_name(small())
    assert stage_keys(small("vector"), here) == before
    write_package(here, size=2.0)
    forget("far_methods")
    after = stage_keys(small(), here)
    assert not set(before) & set(after) and run_name(small()) != name
    write_package(here)
    forget("far_methods")
    assert stage_keys(small(), here) == before


def test_another_process_finds_the_method_where_this_one_did(
    here: Path, small: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is sent brings the folder along: opened where neither module nor folder is known, it is the same."""
    spec = small()
    job = make_job(spec, Store(str(here / "store")))
    sent = pickle.dumps(SentJob.of(job))
    forget("far_methods")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(here)])
    monkeypatch.chdir("/")
    opened = pickle.loads(sent).open()
    assert opened.spec.model_dump() == spec.model_dump()
    assert type(opened.spec.method) is not type(spec.method), "imported anew"
    assert opened.plan == job.plan


def test_a_worker_with_another_source_or_without_the_method_refuses(here: Path, small: Resolve) -> None:
    """Both are one message: what the stages are named after is not what would train them, or nothing is there."""
    sent = SentJob.of(make_job(small(), Store(str(here / "store"))))
    write_package(here, size=3.0)
    forget("far_methods")
    with pytest.raises(SetupError, match="is not the one that this run began with"):
        sent.open()
    forget("far_methods")
    (here / "far_methods" / "vector.py").unlink()
    with pytest.raises(SetupError, match=r"(?s)no module 'far_methods.vector'.*on every machine of the cluster"):
        sent.open()


def test_it_stands_in_a_comparison(here: Path, small: Resolve, flags: MakeFlags) -> None:
    """Beside a method of raycl's own, under its class's name; every sequence finishes."""
    fields = {
        name: value for name, value in flags.spec("sin_lora", "llama").items() if name not in ("method", "workers")
    }
    grid = GridSpec(methods=[f"{PLACE}:size=0.25", "sin_lora:rank=2"], orders=["roget,snippets"], settings=fields)
    options = Options(str(here / "store"), f"sqlite:///{here / 'mlflow.db'}", "test", str(here / "out"))
    result = run_comparison(grid, options, HowToRun(workers=0))
    assert result.failed == 0 and result.trained == 4
    assert {line.label for line in result.board.lines} == {"Vector:size=0.25", "sin_lora:rank=2"}
    assert "Vector:size=0.25" in (here / "out" / "leaderboard.md").read_text()
