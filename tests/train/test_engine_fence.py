"""The parts of DeepSpeed that are not public and that raycl uses all the same: still there, and still what they were."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from raycl.sections import TrainSpec
from raycl.train import engine_deepspeed as engine_module
from raycl.train.engine import BatchShape, Work
from raycl.train.engine_deepspeed import DeepSpeedEngine
from raycl.train.workers import Workers


def moved(what: str, function: str) -> str:
    """The message for whoever raises DeepSpeed's version."""
    return f"DeepSpeed moved {what}: see raycl/train/engine_deepspeed.py {function}"


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ZeRO-3 engine around a small module, as DeepSpeed leaves it; closed at the end of the test."""
    monkeypatch.setattr(engine_module, "keep_whole", lambda engine, parameters: None)
    module = nn.Linear(4, 3)
    engine = DeepSpeedEngine(Work(module, TrainSpec(zero_stage=3), BatchShape(1, 1, 1), False, Workers()))
    yield engine
    engine.close()


def test_the_table_of_ops_decides_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed loads its shared-memory op where the table has it, and does not with raycl's table."""
    import deepspeed.ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    message = moved("__compatible_ops__['deepspeed_shm_comm']", "compile_nothing")
    assert ShareMemCommBuilder.NAME == "deepspeed_shm_comm", message
    builder = SimpleNamespace(NAME=ShareMemCommBuilder.NAME, load=lambda: "op", absolute_name=lambda: "op")
    ds_torch = importlib.import_module("deepspeed.comm.torch")  # `import ... as` would give torch itself
    accelerator = SimpleNamespace(create_op_builder=lambda name: builder)
    monkeypatch.setattr(ds_torch, "get_accelerator", lambda: accelerator)
    monkeypatch.setitem(vars(deepspeed.ops), "__compatible_ops__", {builder.NAME: True})
    assert ds_torch.build_shm_op() == "op", message
    engine_module.compile_nothing()
    assert ds_torch.build_shm_op() is None, message


def test_groups_are_variables_that_start_empty() -> None:
    """In a fresh copy of the module every group is None or an empty dict, which is what raycl puts them back to."""
    import deepspeed.comm.comm as ds_comm
    from deepspeed.utils import groups

    assert "cdb" in vars(ds_comm), moved("comm.comm.cdb", "forget_groups")
    spec = importlib.util.spec_from_file_location("fresh_groups", groups.__file__)
    assert spec and spec.loader
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    found = {name: value for name, value in vars(fresh).items() if name.startswith("_") and "_GROUP" in name}
    assert "_WORLD_GROUP" in found, moved("utils.groups._WORLD_GROUP", "forget_groups")
    for name, value in found.items():
        assert value is None or value == {}, moved(f"utils.groups.{name}", "forget_groups")


def test_zero_3_keeps_a_list_of_small_parameters(sharded: DeepSpeedEngine) -> None:
    """The optimizer lists the parameters below the threshold, which gather each other; none is marked yet."""
    persistent = getattr(sharded.deepspeed.optimizer, "persistent_parameters", None)
    assert isinstance(persistent, list) and persistent, moved("optimizer.persistent_parameters", "keep_whole")
    assert callable(getattr(persistent[0], "all_gather", None)), moved("a parameter's all_gather", "keep_whole")
    for parameter in sharded.parameters:
        assert getattr(parameter, "is_external_param", None) is False, moved("is_external_param", "keep_whole")


def test_zero_3_marks_partitioned_parameters(sharded: DeepSpeedEngine) -> None:
    """They have attributes that start with `ds_`, `ds_id` among them, and none after the stage."""
    for parameter in sharded.parameters:
        assert isinstance(getattr(parameter, "ds_id", None), int), moved("a parameter's ds_id", "unpartition")
    engine_module.unpartition(sharded.deepspeed)
    for parameter in sharded.parameters:
        assert not [name for name in vars(parameter) if name.startswith("ds_")]
        assert parameter.shape in (torch.Size([3, 4]), torch.Size([3]))


def test_what_deepspeed_says_while_it_starts_is_not_on_standard_output() -> None:
    """That is for results. Its loggers keep to it too: they take the stream that stands when they are made."""
    code = (
        "from raycl.train.engine_deepspeed import start_deepspeed; start_deepspeed('cpu')\n"
        "from deepspeed.utils import logger; logger.error('a word of DeepSpeed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DEEPSPEED_LOG_LEVEL": "info", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout == ""
    assert "a word of DeepSpeed" in done.stderr
