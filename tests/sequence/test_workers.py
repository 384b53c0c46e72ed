"""Data-parallel workers and ZeRO stages change nothing but speed: same losses, same subspaces, same branches."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from raycl.presets import merge
from raycl.state.stage_state import StagePart
from raycl.state.store import Store
from tests.kit.commands import Commands
from tests.kit.rank_runs import Case, run_cases
from tests.kit.runs import MakeFlags, assert_same_part

CLOSE = 1e-4
PAIRS = [(method, family) for method in ("gain_o", "gain_inf") for family in ("llama", "t5")]
ODD = {
    "data": {"train_examples": 18, "test_examples": 7},
    "train": {"epochs": 2, "keep": "best", "holdout": 0.06, "micro_batch_size": 1},
    "eval": {"batch_size": 3},
}
"""17 examples in batches of 4, one held-out row for two workers, seven test rows."""


def zero(stage: int, precision: str = "fp32") -> dict[str, Any]:
    """A ZeRO stage and a precision."""
    return {"train": {"zero_stage": stage}, "model": {"precision": precision}}


SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"{method} {family}": (method, family, {}) for method, family in PAIRS},
    "odd sizes": ("o_lora", "llama", ODD),
    "one test row": ("gain_o", "t5", {"data": {"train_examples": 3, "test_examples": 1}}),
    **{f"zero {stage}": ("gain_inf", "llama", zero(stage)) for stage in (1, 2, 3)},
    "zero 3 t5": ("gain_o", "t5", zero(3)),
    **{f"bf16 zero {stage}": ("gain_inf", "llama", zero(stage, "bf16")) for stage in (0, 1, 2, 3)},
}
"""Name -> method, family, further fields."""


@pytest.fixture(scope="module")
def cases(commands: Commands, flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All cases, run by one process and by two."""
    folder = tmp_path_factory.mktemp("workers")
    shared = {"train": {"lr": 1e-3}, "eval": {"forward": False}}
    cases = [
        Case(name, [{"order": "roget,snippets"}, merge(flags.spec(method, family), shared, fields)], folder)
        for name, (method, family, fields) in SETTINGS.items()
    ]
    ports = free_ports(len(cases))
    running = [commands.call(run_cases, cases, rank, world, ports) for rank, world in ((0, 1), (0, 2), (1, 2))]
    ended = [one.wait() for one in running]
    notes = [path.read_text() for path in sorted(folder.rglob("error-*"))]
    assert [one.code for one in ended] == [0, 0, 0], "\n".join([*notes, *(one.err for one in ended)])
    return {case.name: case for case in cases}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def losses(place: Path) -> list[float]:
    """All logged losses and penalty terms of a run, in order."""
    steps = [event for event in json.loads((place / "events.json").read_text()) if event["event"] == "step"]
    return [value for step in steps for value in (step["loss"], *(term["raw"] for term in step["terms"].values()))]


def parts(place: Path) -> list[StagePart]:
    """The parts of the last state of a run."""
    store = Store(str(place / "store"))
    return list(store.read_state(max(store.stage_keys(), key=lambda key: store.manifest(key).stage)).parts)


def assert_same(one: Path, other: Path, close: float = CLOSE) -> None:
    """Two runs logged the same losses and published the same states."""
    assert losses(one) == pytest.approx(losses(other), abs=close, rel=close)
    assert len(parts(one)) == len(parts(other)) == 2
    for mine, theirs in zip(parts(one), parts(other), strict=True):
        assert_same_part(mine, theirs, close)


def assert_trained(place: Path) -> None:
    """A comparison of runs that did nothing would prove nothing."""
    for part in parts(place):
        assert max(value.abs().max() for value in part.branch.b.values()) > 1e-3


@pytest.mark.parametrize("name", [f"{method} {family}" for method, family in PAIRS])
def test_two_workers_do_what_one_does(cases: dict[str, Case], name: str) -> None:
    """Same global batch: same losses and penalties, same subspaces, gates and branches, over two stages."""
    assert_trained(cases[name].place(1))
    assert_same(cases[name].place(1), cases[name].place(2))
    bases = [name for part in parts(cases[name].place(1)) for name in part.tensors if "basis/" in name]
    assert bases


@pytest.mark.parametrize("name", ["odd sizes", "one test row"])
def test_sizes_that_do_not_divide_are_shared_out_right(cases: dict[str, Case], name: str) -> None:
    """A last, smaller batch, fewer rows than workers, uneven shards: as with one worker; every row is scored once."""
    case = cases[name]
    assert_same(case.place(1), case.place(2))
    rows = [predictions(case.place(world)) for world in (1, 2)]
    assert rows[0] == rows[1]
    count = 7 if name == "odd sizes" else 1
    assert sorted(map(len, rows[0])) == [count] * 3


def predictions(place: Path) -> list[list[dict[str, Any]]]:
    """The predictions of every cell of a run."""
    store = Store(str(place / "store"))
    keys = sorted(path.parent.name for path in (place / "store" / "scores").rglob("scores.json"))
    return [store.read_predictions(key) for key in keys]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_gives_the_same_state(cases: dict[str, Case], stage: int, world: int) -> None:
    """Sharding optimizer, gradients or weights is only a matter of memory; after ZeRO-3 the next stage finds all whole."""
    assert_trained(cases[f"zero {stage}"].place(world))
    assert_same(cases[f"zero {stage}"].place(world), cases["gain_inf llama"].place(1))


@pytest.mark.parametrize("world", [1, 2])
def test_zero_3_serves_an_encoder_decoder(cases: dict[str, Case], world: int) -> None:
    """Shared embeddings and cross-attention are gathered and given back as well."""
    assert_same(cases["zero 3 t5"].place(world), cases["gain_o t5"].place(1))


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_gives_the_same_state_in_bf16(cases: dict[str, Case], stage: int) -> None:
    """With base weights in bf16 and one worker the arithmetic is the same."""
    assert_trained(cases[f"bf16 zero {stage}"].place(1))
    assert_same(cases[f"bf16 zero {stage}"].place(1), cases["bf16 zero 0"].place(1))


def test_zero_3_stays_close_in_bf16(cases: dict[str, Case]) -> None:
    """ZeRO-3's hooks change the order in which bf16 gradients of a shared input are added up: they differ by 2**-8.

    Each weight moves by about 4e-3 in all, four steps at rate 1e-3; in fp32 the same gradients agree to 1e-6.
    """
    places = [cases[f"bf16 zero {stage}"].place(1) for stage in (3, 0)]
    assert losses(places[0]) == pytest.approx(losses(places[1]), rel=2e-3)
    first, reference = (parts(place)[0].branch.b for place in places)
    for path in first:
        torch.testing.assert_close(first[path], reference[path], rtol=0, atol=5e-4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_workers_in_bf16_stay_close(cases: dict[str, Case], stage: int) -> None:
    """Rows are rounded to bf16 in other batches, so losses agree to bf16's precision only."""
    one, two = (losses(cases[f"bf16 zero {stage}"].place(world)) for world in (1, 2))
    assert one == pytest.approx(two, rel=2e-2, abs=2e-2)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_what_is_published_is_fp32_and_verifies(cases: dict[str, Case], name: str) -> None:
    """Under every ZeRO stage, precision and world size."""
    for world in (1, 2):
        assert Store(str(cases[name].place(world) / "store")).verify() == []
        for part in parts(cases[name].place(world)):
            tensors = [*part.branch.a.values(), *part.branch.b.values(), *part.tensors.values()]
            assert {tensor.dtype for tensor in tensors} == {torch.float32}
            assert all(tensor.isfinite().all() for tensor in tensors)
