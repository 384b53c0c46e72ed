"""The engines' arithmetic: one optimizer step by hand, the same for both; which one takes a stage's steps."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raycl.errors import SetupError
from raycl.sections import TrainSpec
from raycl.train.engine import BatchShape, Engine, Work, engine_name, make_engine
from raycl.train.engine_deepspeed import DeepSpeedEngine, forget_groups, import_deepspeed
from raycl.train.engine_torch import TorchEngine
from raycl.train.workers import Workers

ONE = BatchShape(1, 1, 1)


@pytest.fixture(params=["deepspeed", "torch"])
def engine_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., tuple[Engine, nn.Linear]]]:
    """Makes engines of either kind around a layer with weights 3 and -4, closed at the end."""
    made: list[Engine] = []

    def make(shape: BatchShape = ONE, bf16: bool = False, **train: Any) -> tuple[Engine, nn.Linear]:
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[3.0, -4.0]])
        made.append(make_engine(Work(layer, TrainSpec(**{"engine": request.param} | train), shape, bf16, Workers())))
        return made[-1], layer

    yield make
    for engine in made:
        engine.close()


def step(engine: Engine, x: Tensor, rate: float = 0.1) -> None:
    """One micro-batch whose gradient is x."""
    engine.backward(engine.loss(x).sum())
    engine.step(rate)


def test_weight_decay_is_decoupled_and_scaled_by_the_rate(engine_of: Any) -> None:
    """AdamW without a gradient: w <- w (1 - rate decay), here 1 - 0.1 * 0.5; without decay nothing moves."""
    for decay, expected in ((0.5, [[2.85, -3.8]]), (0.0, [[3.0, -4.0]])):
        engine, layer = engine_of(weight_decay=decay)
        step(engine, torch.zeros(1, 2))
        assert torch.allclose(layer.weight, torch.tensor(expected))


def test_the_first_step_has_the_length_of_the_rate(engine_of: Any) -> None:
    """Adam's first step is rate * sign(gradient), at the rate that this very step is given."""
    engine, layer = engine_of()
    step(engine, torch.tensor([[2.0, -3.0]]), 0.25)
    assert torch.allclose(layer.weight, torch.tensor([[2.75, -3.75]]), atol=1e-5)
    before = layer.weight.detach().clone()
    step(engine, torch.tensor([[2.0, -3.0]]), 0.0)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(("norm", "length"), [(1.0, 1.0), (0.5, 0.5), (0.0, 5.0), (9.0, 5.0)])
def test_gradients_are_clipped_by_their_global_norm(engine_of: Any, norm: float, length: float) -> None:
    """Gradient (3, 4) has norm 5: with `max_grad_norm` m > 0 Adam sees min(1, m / 5) of it, with 0 all of it."""
    engine, layer = engine_of(max_grad_norm=norm)
    step(engine, torch.tensor([[3.0, 4.0]]))
    first_moment = engine.optimizer.state[layer.weight]["exp_avg"] / 0.1
    assert first_moment.norm().item() == pytest.approx(length, rel=1e-4)
    assert engine.grad_norm == pytest.approx(5.0)  # as it was before


def test_micro_batches_are_averaged_into_one_step(engine_of: Any) -> None:
    """Two micro-batches with gradients (2, 0) and (0, 4): nothing moves before the second; Adam sees (1, 2)."""
    engine, layer = engine_of(BatchShape(2, 1, 1), max_grad_norm=0.0)
    step(engine, torch.tensor([[2.0, 0.0]]))
    assert layer.weight.tolist() == [[3.0, -4.0]]
    step(engine, torch.tensor([[0.0, 4.0]]))
    assert torch.allclose(engine.optimizer.state[layer.weight]["exp_avg"] / 0.1, torch.tensor([[1.0, 2.0]]))
    assert not math.isclose(layer.weight[0, 0].item(), 3.0)


@pytest.mark.parametrize(
    ("engine_kind", "zero"), [("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
)
def test_a_closed_engine_leaves_the_module_as_any_other(engine_kind: Any, zero: Any) -> None:
    """No hook of it sees the next backward pass, and the next engine starts from the trained weights."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, -4.0]])
    for expected in ([[2.9, -3.9]], [[2.8, -3.8]]):
        engine = make_engine(Work(layer, TrainSpec(zero_stage=zero, engine=engine_kind), ONE, False, Workers()))
        step(engine, torch.tensor([[2.0, -3.0]]))
        engine.close()
        assert torch.allclose(layer.weight, torch.tensor(expected), atol=1e-4) and layer.weight.grad is None
        layer(torch.tensor([[5.0, 7.0]])).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[5.0, 7.0]]
        layer.weight.grad = None


def test_a_process_alone_is_a_world_of_one(engine_of: Any) -> None:
    """As DeepSpeed and what it starts read it from the environment."""
    engine_of(engine="deepspeed")
    assert {os.environ[name] for name in ("WORLD_SIZE", "LOCAL_SIZE")} == {"1"}
    assert {os.environ[name] for name in ("RANK", "LOCAL_RANK")} == {"0"}


def test_groups_of_an_earlier_world_are_forgotten() -> None:
    """A sequence's processes are grouped anew by whoever starts them: DeepSpeed must not go on with the last groups."""
    for _ in range(2):
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[3.0, -4.0]])
        engine = DeepSpeedEngine(Work(layer, TrainSpec(zero_stage=2), ONE, False, Workers()))
        step(engine, torch.tensor([[2.0, -3.0]]))
        engine.close()
        assert torch.allclose(layer.weight, torch.tensor([[2.9, -3.9]]), atol=1e-4)
        dist.destroy_process_group()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_weights_are_ordinary_tensors_once_an_engine_is_closed() -> None:
    """Those that ZeRO-3 has shared out among the workers too."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, -4.0]])
    engine = DeepSpeedEngine(Work(layer, TrainSpec(zero_stage=3), ONE, False, Workers()))
    step(engine, torch.tensor([[2.0, -3.0]]))
    engine.close()
    assert torch.allclose(layer.weight, torch.tensor([[2.9, -3.9]]), atol=1e-4)
    assert not hasattr(layer.weight, "ds_id")


def test_a_forward_pass_over_a_base_in_bf16_is_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast's own choice is fp16 on CUDA."""
    asked: list[Any] = []
    monkeypatch.setattr(torch, "autocast", lambda device, dtype=None: asked.append((device, dtype)) or nullcontext())
    for bf16 in (True, False):
        engine = TorchEngine(Work(nn.Linear(2, 1), TrainSpec(), ONE, bf16, Workers()))
        engine.loss(torch.zeros(1, 2))
    assert asked == [("cpu", torch.bfloat16)]


def test_groups_of_this_world_are_kept(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A communicator and groups are made once for a world, and forgotten with it."""
    import deepspeed.comm.comm as ds_comm
    from deepspeed.utils import groups

    engine_of(engine="deepspeed", zero_stage=2)
    communicator, world = ds_comm.cdb, groups._get_data_parallel_group()  # pyright: ignore[reportPrivateUsage]
    engine_of(engine="deepspeed", zero_stage=2)
    assert ds_comm.cdb is communicator is not None
    assert groups._get_data_parallel_group() is world  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(ds_comm, "cdb", communicator)  # for those that end after this
    forget_groups(all_gone=True)
    assert ds_comm.cdb is None


def test_what_deepspeed_lacks_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DeepSpeed the way out is said; where only something that it needs is missing, that is what is missing."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(SetupError, match=r"set train\.engine=torch"):
        import_deepspeed("cpu")
    monkeypatch.delitem(sys.modules, "deepspeed")
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        import_deepspeed("cpu")


def test_no_gradient_travels_in_less_than_its_own_precision(engine_of: Any) -> None:
    """DeepSpeed marks parameters that may travel in bf16, linear layers unless told otherwise: here none."""
    from deepspeed.runtime.torch_autocast import get_comm_dtype, is_autocast_initialized

    _, layer = engine_of(bf16=True, engine="deepspeed")
    assert is_autocast_initialized()
    assert get_comm_dtype(layer.weight) == torch.float32


def test_a_gradient_can_be_read_and_replaced_before_the_step(engine_of: Any) -> None:
    """After the last micro-batch: (2, 0) is read, (0, -5) is put in its place, and the first step follows its sign."""
    engine, layer = engine_of(max_grad_norm=0.0)
    engine.backward(engine.loss(torch.tensor([[2.0, 0.0]])).sum())
    read, write = engine.gradients()
    assert read(layer.weight).tolist() == [[2.0, 0.0]]
    write(layer.weight, torch.tensor([[0.0, -5.0]]))
    engine.step(0.5)
    assert torch.allclose(layer.weight, torch.tensor([[3.0, -3.5]]), atol=1e-5)


def test_a_parameter_that_no_batch_used_decays_like_any_other(engine_of: Any) -> None:
    """A step whose loss does not reach it has gradient zero for it, not none: w <- w (1 - rate decay)."""
    engine, layer = engine_of(weight_decay=0.5)
    engine.backward(torch.zeros(1, requires_grad=True).sum())
    engine.step(0.1)
    assert torch.allclose(layer.weight, torch.tensor([[2.85, -3.8]]))


def test_in_bf16_the_forward_pass_rounds_and_the_weights_do_not(engine_of: Any) -> None:
    """1 + 2^-9 is 1 in bf16: 3 * 1 - 4 * 0 in place of 3.006; the weight keeps its fp32 step."""
    engine, layer = engine_of(bf16=True)
    assert engine.loss(torch.tensor([[1 + 2**-9, 0.0]])).item() == 3.0
    step(engine, torch.tensor([[1.0, 0.0]]), 2**-12)
    assert layer.weight.dtype == torch.float32 and layer.weight[0, 0].item() == pytest.approx(3 - 2**-12, abs=1e-6)


@pytest.mark.parametrize(
    ("engine", "zero", "world", "expected"),
    [
        ("auto", 0, 1, "torch"),
        ("auto", 1, 1, "deepspeed"),
        ("auto", 0, 2, "deepspeed"),
        ("deepspeed", 0, 1, "deepspeed"),
        ("torch", 0, 2, "torch"),
    ],
)
def test_which_engine_takes_the_steps(engine: Any, zero: Any, world: int, expected: str) -> None:
    """Plain torch by default where one process takes them at ZeRO stage 0."""
    assert engine_name(TrainSpec(engine=engine, zero_stage=zero), world) == expected
