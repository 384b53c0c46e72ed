"""A mid-stage checkpoint: what is in it, and what is taken up again."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raycl.errors import DivergedError
from raycl.events import Step
from raycl.train.checkpoints import Checkpoints, generators, set_generators
from raycl.train.meter import Meter
from raycl.train.selection import Best
from raycl.train.workers import Workers


class Kept:
    """A place for checkpoints in memory."""

    def __init__(self) -> None:
        self.found: Any = None

    def load(self) -> Any:
        return self.found

    def save(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        self.found = ({name: value.clone() for name, value in tensors.items()}, facts)


def begun(seed: float, kept: Kept, workers: Workers | None = None) -> tuple[Checkpoints, Any, Any, Meter]:
    """A stage whose every number is `seed` or follows from it."""
    weights = [torch.nn.Parameter(torch.full((2,), seed)), torch.nn.Parameter(torch.full((1, 3), -seed).double())]
    state = {p: {"step": torch.tensor(seed), "exp_avg": p.detach() * 2, "exp_avg_sq": p.detach() ** 2} for p in weights}
    engine: Any = SimpleNamespace(parameters=weights, optimizer=SimpleNamespace(state=state))
    best = Best(weights)
    best.offer(seed)
    workers = workers or Workers()
    meter = Meter(workers)
    meter.add(torch.tensor(seed), {}, int(seed))
    running = {"sums": torch.full((2,), seed)}
    return Checkpoints(kept, engine, best, workers, lambda: running), engine, running, meter


STEP = Step(1, 4, 9, 0.5, 1.0, 2.0)


def test_what_was_left_is_taken_up() -> None:
    """Weights, Adam's moments and step count, the best epoch, the method's sums, the meter, the generator, the log."""
    kept = Kept()
    saved, engine, _, meter = begun(3.0, kept)
    torch.manual_seed(7)
    saved.save(4, [STEP], meter)
    drawn = torch.rand(3)
    engine.parameters[0].data.zero_()  # what goes on afterwards does not reach the checkpoint
    loaded, other, running, resumed = begun(5.0, kept)
    torch.manual_seed(8)
    assert loaded.load(resumed) == (4, [STEP])
    assert torch.equal(torch.rand(3), drawn)
    assert [p.tolist() for p in other.parameters] == [[3.0, 3.0], [[-3.0, -3.0, -3.0]]]
    first = other.optimizer.state[other.parameters[0]]
    assert {name: value.tolist() for name, value in first.items()} == {
        "step": 3.0,
        "exp_avg": [6.0, 6.0],
        "exp_avg_sq": [9.0, 9.0],
    }
    second = other.optimizer.state[other.parameters[1]]
    assert second["exp_avg"].tolist() == [[-6.0, -6.0, -6.0]]
    # torch's AdamW counts steps on the CPU in fp32, whatever a parameter is and wherever.
    assert {name: value.dtype for name, value in second.items()} == {
        "step": torch.float32,
        "exp_avg": torch.float64,
        "exp_avg_sq": torch.float64,
    }
    assert running["sums"].tolist() == [3.0, 3.0]
    assert loaded.best is not None and loaded.best.loss == 3.0
    assert [value.tolist() for value in loaded.best.values] == [[3.0, 3.0], [[-3.0, -3.0, -3.0]]]
    assert resumed.state() == meter.state()


def test_without_a_checkpoint_a_stage_starts() -> None:
    """At step 0, with an empty log, and nothing is touched."""
    checkpoints, engine, running, meter = begun(3.0, Kept())
    assert checkpoints.load(meter) == (0, [])
    assert engine.parameters[0].tolist() == running["sums"].tolist() == [3.0, 3.0]


def test_a_stage_without_a_best_epoch_leaves_none() -> None:
    """Nothing was held out, or no epoch has ended yet: an earlier choice stays away."""
    kept = Kept()
    saved, _, _, meter = begun(3.0, kept)
    saved.best.values = []  # type: ignore[union-attr]
    saved.save(4, [], meter)
    assert "best_loss" not in kept.found[1] and not [name for name in kept.found[0] if name.startswith("best/")]
    loaded, _, _, resumed = begun(5.0, kept)
    assert loaded.load(resumed) == (4, [])
    assert loaded.best is not None and loaded.best.loss == 5.0


class Seen(Workers):
    """One of two workers; what the other one has is given."""

    def __init__(self, rank: int, other: Any) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "other", other)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other] if self.rank == 0 else [self.other, value]


def test_workers_take_up_their_own_generators_and_only_one_writes() -> None:
    """Rank 0 writes for all; if another worker sees another checkpoint, or none, all start over."""
    kept, other = Kept(), {"rng": torch.Generator().manual_seed(99).get_state()}
    theirs = begun(6.0, Kept())[3].state()
    saved, _, _, meter = begun(3.0, kept, Seen(0, (theirs, other)))
    saved.save(4, [STEP], meter)
    silent = Kept()
    second, _, _, late = begun(3.0, silent, Seen(1, (theirs, other)))
    second.save(4, [STEP], late)
    assert silent.found is None
    loaded, _, _, resumed = begun(5.0, kept, Seen(1, 4))
    assert loaded.load(resumed)[0] == 4
    assert torch.equal(torch.get_rng_state(), other["rng"]) and resumed.state() == theirs
    for seen in (None, 3):
        apart, engine, _, _ = begun(5.0, kept, Seen(0, seen))
        assert apart.load(meter) == (0, []) and engine.parameters[0].tolist() == [5.0, 5.0]


def test_another_number_of_workers_keeps_its_own_generators() -> None:
    """No worker of the new number has a state to take up; weights and log are taken all the same."""
    kept = Kept()
    saved, _, _, meter = begun(3.0, kept)
    saved.save(4, [STEP], meter)
    loaded, engine, _, resumed = begun(5.0, kept, Seen(1, 4))
    before = torch.get_rng_state()
    assert loaded.load(resumed)[0] == 4 and engine.parameters[0].tolist() == [3.0, 3.0]
    assert torch.equal(torch.get_rng_state(), before) and resumed.state()["tokens"] == 5


def test_a_gpu_has_a_generator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is kept and put back on a GPU; on a CPU that goes on with a GPU's checkpoint it is left alone."""
    heard = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([1]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: heard.append((state.tolist(), device)))
    assert generators("cpu").keys() == {"rng"}
    states = generators("cuda:1")
    assert states["rng_cuda"].tolist() == [1] and states.keys() == {"rng", "rng_cuda"}
    set_generators(states, "cpu")
    set_generators({"rng": states["rng"]}, "cuda:1")
    assert heard == []
    set_generators(states, "cuda:1")
    assert heard == [([1], "cuda:1")]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "loss"])
def test_what_no_run_could_go_on_from_is_not_kept(bad: float, where: str) -> None:
    """The checkpoint before stays; the message says what is wrong and what to change."""
    kept = Kept()
    saved, engine, _, meter = begun(3.0, kept)
    saved.save(4, [STEP], meter)
    before = kept.found
    if where == "weight":
        engine.parameters[1].data[0, 1] = bad
    else:
        meter.add(torch.tensor(bad), {}, 1)
    with pytest.raises(DivergedError, match=rf"after step 6 a {where} is no number.*is kept.*Lower train.lr"):
        saved.save(6, [STEP, STEP], meter)
    assert kept.found is before
