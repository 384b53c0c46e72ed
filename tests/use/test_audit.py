"""Stages of a run trained again: the same bits, or named with what was different."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raycl.errors import SpecError
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.resolve import resolve
from raycl.state.keys import key_folder
from raycl.state.manifest import Provenance
from raycl.state.stage_state import Branch, StagePart
from raycl.state.store import Store
from raycl.use.audit import audit
from raycl.use.heads import Head, find_head
from tests.kit.cli import invoke
from tests.kit.runs import MakeFlags, digests


@pytest.fixture(scope="module", params=["gain_o", "route_lora"])
def run(request: pytest.FixtureRequest, flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages, with one thread as the audit has; its output folder, with the store beside it."""
    root = tmp_path_factory.mktemp("audited")
    fields = flags.spec(request.param, "llama") | {"order": "roget,snippets,plots", "eval": {"forward": False}}
    run_sequence(resolve("laptop", [fields], 0), Options(str(root / "store"), "off", output=str(root / "run")), [])
    return root / "run"


@pytest.fixture
def head(run: Path) -> Iterator[Head]:
    """The run, and the store as it was before."""
    store = run.parent / "store"
    before = digests(store)
    yield find_head(str(run))
    assert digests(store) == before, "an audit touches nothing"


def test_every_stage_comes_out_the_same(head: Head) -> None:
    """The second and third go on from their stored parents, where the method has any."""
    found = list(audit(head, 1.0))
    assert [(one.stage, one.differs) for one in found] == [(1, ()), (2, ()), (3, ())]


def test_the_draw_is_that_of_the_seed_and_never_empty(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycl.use.audit._trained_again", lambda job, stage: stage)
    drawn = {seed: [one.stage for one in audit(head, 0.01, seed)] for seed in range(8)}
    assert all(len(stages) == 1 for stages in drawn.values())
    assert drawn == {seed: [one.stage for one in audit(head, 0.01, seed)] for seed in range(8)}
    assert len({tuple(stages) for stages in drawn.values()}) > 1


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none(head: Head, share: float) -> None:
    with pytest.raises(SpecError, match="--share"):
        list(audit(head, share))


def test_a_stage_of_other_numbers_is_named_with_what_was_different(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another machine had made it; exit code 2, and the store stays as it is."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    store = Store(str(shutil.copytree(run.parent / "store", tmp_path / "store")))
    last = find_head(str(run)).last
    found, part = store.manifest(last), store.read(last)
    shutil.rmtree(Path(store.uri) / key_folder("stages", last))
    pair = part.pair
    other = Branch(pair.rank, pair.alpha, pair.a, {path: b + torch.finfo(b.dtype).eps for path, b in pair.b.items()})
    environment = found.environment | {"libraries": found.environment["libraries"] | {"torch": "9.9"}}
    seen = {"environment": environment, "runtime": found.runtime, "log": found.log}
    store.publish(
        StagePart(part.task, other, part.tensors, part.facts),
        Provenance(found.recipe, found.stage, found.parent, parent_digest=found.parent_digest, **seen),
    )
    answer = invoke("store", ["audit", str(run), "--share", "1", "--store", store.uri])
    assert answer.code == 2, answer.output
    lines = answer.stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:2]] == ["the same, bit for bit"] * 2
    assert "differs in adapter/adapter_model.safetensors" in lines[2] and "libraries.torch 9.9 then" in lines[2]
    assert "1 stages came out otherwise" in answer.stderr
