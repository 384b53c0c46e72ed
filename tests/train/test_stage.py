"""A stage around its training: seeds, splits, draws, what workers must agree on."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.events import StageStart
from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build, method_params
from raycl.sections import TrainSpec
from raycl.spec import RunSpec
from raycl.state.stage_state import StagePart, StageState
from raycl.train.batches import Encoded, Encoder
from raycl.train.stage import StageRun, enough
from raycl.train.workers import Workers

SEED = 3
INC = {"name": "inc_lora", "rank": 2, "alpha": 4}


def seed_of(purpose: str) -> int:
    """The first six bytes of SHA-256 of seed, stage and purpose."""
    return int.from_bytes(hashlib.sha256(f"{SEED}:1:{purpose}".encode()).digest()[:6], "big")


def permutation(purpose: str, count: int) -> list[int]:
    """A draw of that purpose."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(purpose))).tolist()


class OneOfTwo(Workers):
    """A worker whose partner is silent; it notes what it exchanges."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "agreed", [])

    def sum(self, tensors: Any) -> None:
        """Nothing to exchange."""

    def agree(self, tensors: Any) -> None:
        self.agreed.append(list(tensors))


class Untrained(StageRun):
    """A stage that looks around in place of training."""

    def train(self, ready: Any) -> None:
        self.seen = {
            "torch": torch.initial_seed(),
            "numpy": np.random.random(),
            "python": random.random(),
            "rows": ready.rows,
            "held out": ready.held_out,
            "trained": [p for p in ready.module.parameters() if p.requires_grad],
        }


def untrained(tiny: Any, task: Any, workers: Workers, params: dict[str, Any] = INC, **train: Any) -> Untrained:
    """A stage without its training, already run."""
    method = build(method_params(params["name"]).model_validate(params), StageInfo(1, 1, task.name, SEED))
    spec = RunSpec(
        order="toy", tasks=[task.name], method=method.params, train=TrainSpec(batch_size=8, **train), seed=SEED
    )
    encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    run = Untrained(tiny, method, StageState(), task, spec, encoder, workers, lambda event: None)
    run.run()
    return run


def test_a_stage_says_what_it_trained_and_where_its_time_went(tiny, toy_task):
    """The numbers that the optimizer owned: A and B of every module; seconds of each phase, and the rest."""
    task = toy_task(1, distinct=2, repeats=1)
    method = build(method_params("inc_lora").model_validate(INC), StageInfo(1, 1, task.name, SEED))
    spec = RunSpec(
        order="toy", tasks=[task.name], model={"precision": "fp32"}, method=method.params, train=TrainSpec(batch_size=2)
    )
    encoder, events = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8), []
    run = StageRun(tiny, method, StageState(), task, spec, encoder, Workers(), events.append)
    branch = run.run().branch
    assert run.trainable == sum(tensor.numel() for tensor in [*branch.a.values(), *branch.b.values()])
    assert run.seconds.keys() == {"pass_before", "train", "pass_after", "other"}
    assert events == [StageStart(1, task.name, 1), *run.log] and len(run.log) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_the_global_generators_are_seeded_by_run_stage_and_rank(tiny, toy_task, rank):
    """torch's, numpy's and Python's: dropout differs between workers, and is the same in every run."""
    seen = untrained(tiny, toy_task(1), OneOfTwo(rank)).seen
    seed = seed_of("global") + rank
    assert seen["torch"] == seed
    assert seen["numpy"] == np.random.RandomState(seed % 2**32).random()
    assert seen["python"] == random.Random(seed).random()


def test_workers_agree_on_what_the_method_put_there_before_training(tiny, toy_task):
    """Once, on exactly the method's own tensors: no base weight travels."""
    workers = OneOfTwo(0)
    run = untrained(tiny, toy_task(1), workers, INC | {"name": "inf_lora"})
    trained = {value.data_ptr() for value in run.seen["trained"]}
    (agreed,) = workers.agreed
    assert trained < {value.data_ptr() for value in agreed}
    layers = len(run.method.branches.layers)
    assert len(trained) == layers and len(agreed) == 2 * layers


def test_what_is_held_out_is_drawn_by_the_seed(tiny, toy_task):
    """The first fifth of a permutation, in the order of the task; the rest trains, in its order."""
    task = toy_task(1, distinct=10, repeats=1, spread=3)
    run = untrained(tiny, task, Workers(), keep="best", holdout=0.2)
    rows = run.encoder.encode(task.train)
    out = sorted(permutation("holdout", 10)[:2])
    assert list(run.seen["held out"]) == [rows[index] for index in out]
    assert [row.prompt for row in run.seen["rows"]] == [rows[index].prompt for index in range(10) if index not in out]


@pytest.mark.parametrize(("share", "expected"), [(0.26, 3), (0.25, 2), (0.01, 1), (0.0, 0)])
def test_the_held_out_share_is_rounded_to_at_least_one(tiny, toy_task, share, expected):
    """Of 10: 2.6 is 3, 2.5 is 2 (to even), 0.1 is 1; 0 is none."""
    run = untrained(tiny, toy_task(1, distinct=10, repeats=1), Workers(), keep="best", holdout=share)
    assert (len(run.seen["held out"]), len(run.seen["rows"])) == (expected, 10 - expected)


def test_a_pass_of_few_rows_draws_them_by_the_seed(tiny, toy_task, monkeypatch):
    """As many as the method wants, in the order of the task; all if it wants all or more."""
    task = toy_task(1, distinct=6, repeats=1, spread=3)
    passed: list[Any] = []
    monkeypatch.setattr("raycl.train.stage.DataPass.run", lambda self, rows, *more: passed.append(list(rows)))
    monkeypatch.setattr("raycl.methods.ewc.Ewc.consolidate", lambda self, moments: StagePart("t"))
    for wanted, expected in ((2, sorted(permutation("pass", 6)[:2])), (6, list(range(6))), (9, list(range(6)))):
        run = untrained(tiny, task, Workers(), {"name": "ewc", "rank": 2, "alpha": 4, "fisher_examples": wanted})
        assert passed.pop() == [run.seen["rows"][index] for index in expected]
    assert not passed


class Tampered(Untrained):
    """A stage whose training changes what an earlier one has trained."""

    def train(self, ready: Any) -> None:
        next(iter(self.state.parts[0].pair.b.values())).add_(1)


def test_a_stage_that_changed_an_earlier_branch_ends_with_its_name_and_a_clean_backbone(tiny, toy_task, run_stage):
    """No part comes out of it, so nothing can be published."""
    before = set(tiny.backbone.model.state_dict())
    params = method_params("inc_lora").model_validate(INC)
    task = toy_task(1, distinct=2, repeats=1)
    first = run_stage(tiny, INC, [task])
    method = build(params, StageInfo(2, 2, "t", SEED))
    spec = RunSpec(order="toy", tasks=["one", task.name], method=params, train=TrainSpec(batch_size=2))
    encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    state = StageState((first.part,))
    with pytest.raises(RuntimeError, match=r"changed 1 tensors of earlier stages, B of .* of stage 1 first"):
        Tampered(tiny, method, state, task, spec, encoder, Workers(), lambda event: None).run()
    assert set(tiny.backbone.model.state_dict()) == before


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), tokens=st.integers(0, 60), data=st.data())
def test_rows_are_taken_until_they_have_the_tokens(sizes: list[int], tokens: int, data: st.DataObject) -> None:
    """The shortest beginning of the order that has them, and all rows where they never do; prompts and answers count."""
    rows = [Encoded((1,) * (size - 1), (2,)) for size in sizes]
    order = data.draw(st.permutations(range(len(sizes))))
    sums = [sum(sizes[place] for place in order[:count]) for count in range(len(sizes) + 1)]
    wanted = next((count for count, reached in enumerate(sums) if reached >= tokens), len(sizes))
    assert enough(rows, order, tokens) == order[:wanted]


def test_a_stage_says_how_much_its_branch_adds(tiny: Any, toy_task: Any, run_stage: Any) -> None:
    """The Frobenius norm over all modules, from the products in full; without a branch there is none."""
    result = run_stage(tiny, INC, [toy_task(1)])
    branch = result.part.pair
    products = [branch.alpha / branch.rank * branch.b[path] @ a for path, a in branch.a.items()]
    wanted = torch.cat([product.flatten() for product in products]).norm()
    assert result.gauges["update_norm"] == pytest.approx(float(wanted), rel=1e-5) and wanted > 0.01
    assert "update_norm" not in run_stage(tiny, {"name": "prog_prompt"}, [toy_task(1)]).gauges
