"""DeepSpeed, and only here: one engine per stage on CPU (gloo) or GPU, ZeRO 0 to 3.

Base weights are frozen in bf16 and everything trainable is fp32, under DeepSpeed's `torch_autocast`: so gates and adapters
keep fp32 precision at every ZeRO stage. The optimizer is torch's AdamW, at stage 0 also
its Muon.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from raycl.errors import SetupError
from raycl.train.engine import ReadGradient, Work, WriteGradient, length
from raycl.train.ops import builds_reported, own_programs_first


class DeepSpeedEngine:
    """A DeepSpeed engine around a module whose trainable parameters are given, at ZeRO stage 0 to 3."""

    def __init__(self, work: Work) -> None:
        deepspeed = start_deepspeed(work.workers.device)
        _plain_strides(work.module)
        self.parameters = work.parameters
        self.zero = work.train.zero_stage
        self.optimizer = work.optimizer()
        config = _config(work, max(parameter.numel() for parameter in self.parameters))
        self.deepspeed, *_ = deepspeed.initialize(model=work.module, optimizer=self.optimizer, config=config)
        if self.zero == 3:
            keep_whole(self.deepspeed, self.parameters)
        self._norm: Any = 0.0

    @property
    def grad_norm(self) -> float:
        """As `Engine.grad_norm` says."""
        return float(self._norm)

    def loss(self, *args: Any) -> Any:
        """The module's forward pass, under the engine's autocast."""
        return self.deepspeed(*args)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch."""
        self.deepspeed.backward(loss)

    def gradients(self) -> tuple[ReadGradient, WriteGradient]:
        """Functions that read and replace a parameter's whole gradient, at any ZeRO stage, as `Engine.gradients` says."""
        from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

        return safe_get_full_grad, safe_set_full_grad

    def step(self, lr: float) -> None:
        """Count a micro-batch; at the end of a global batch, average over the workers, clip, and update at rate `lr`."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        ends = self.deepspeed.is_gradient_accumulation_boundary()
        if ends and self.zero == 0:  # where DeepSpeed measures it and does not keep it
            self._norm = length([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        self.deepspeed.step()
        if ends and self.zero:
            self._norm = self.deepspeed.get_global_grad_norm() or 0.0

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        self.deepspeed.train(mode)

    def close(self) -> None:
        """Give every worker the full trained weights and take the engine's hooks and buffers away.

        After ZeRO-3 all parameters are gathered back into ordinary tensors.
        """
        if self.zero == 3:
            unpartition(self.deepspeed)
        self.deepspeed.destroy()
        # DeepSpeed destroys an engine again when it is collected, which may be in the middle of the next stage. That would
        # put the gradients of parameters which that stage trains too (all weights, ZeRO 1 and 2) out of reach, as if 0.
        self.deepspeed.destroy = lambda: None
        for parameter in self.parameters:
            parameter.grad = None
        del self.deepspeed, self.optimizer


def _plain_strides(module: nn.Module) -> None:
    """DeepSpeed views every parameter as bytes, which a column of a matrix refuses: its last stride is not 1.

    torch calls such a tensor contiguous all the same, so only a copy helps.
    """
    for parameter in module.parameters():
        if parameter.dim() and parameter.stride(-1) != 1:
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _config(work: Work, largest: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage; `largest` is the size of the largest parameter that trains.

    By default DeepSpeed rounds weights and gradients of linear modules to bf16 where it moves them between workers; the
    empty list of modules that are safe for it keeps them in fp32.
    """
    train, shape = work.train, work.shape
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.zero_stage == 3:
        # Adapters, gates and keys stay whole: methods read them directly. Only larger base weights are sharded.
        zero |= {"stage3_param_persistence_threshold": largest + 1}
    return {
        "train_batch_size": shape.batch,
        "train_micro_batch_size_per_gpu": shape.micro,
        "gradient_accumulation_steps": shape.accumulation,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": work.bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def start_deepspeed(device: str) -> Any:
    """Import DeepSpeed for `device` and make sure a process group stands; the module.

    The first call in a process takes seconds, on a GPU minutes where an op has to be built. Raises SetupError for a build
    that fails.
    """
    deepspeed = import_deepspeed(device)
    with builds_reported(), contextlib.redirect_stdout(sys.stderr):
        backend = "gloo" if device == "cpu" else "nccl"
        _process_group(backend)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return deepspeed


def import_deepspeed(device: str) -> Any:
    """DeepSpeed, imported quietly for `device`; on a CPU it builds nothing. Raises SetupError where it is not installed."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    own_programs_first()
    # DeepSpeed prints, and its loggers write, to what is standard output while it is imported: that is for results.
    with builds_reported(), contextlib.redirect_stdout(sys.stderr):
        deepspeed = _imported()
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if device == "cpu":
            compile_nothing()
    return deepspeed


def _imported() -> Any:
    """DeepSpeed. Raises SetupError where it is not installed."""
    leave_out_autotuner()
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        if error.name != "deepspeed":
            raise
        raise SetupError(
            "train.engine: DeepSpeed is not installed here; next step: `pip install deepspeed`, or, at train.zero_stage=0, "
            "set train.engine=torch"
        ) from None
    return deepspeed


def leave_out_autotuner() -> None:
    """Let DeepSpeed find its autotuner imported already, and empty: raycl has no use for it, and it imports all of MLflow,
    which takes every worker two seconds and over 100 MB.

    0.19.8 has no switch; nothing but its launcher, which Ray takes the place of, uses the autotuner.
    """
    empty = ModuleType("deepspeed.autotuning.autotuner")
    vars(empty)["Autotuner"] = None
    sys.modules.setdefault(empty.__name__, empty)


def compile_nothing() -> None:
    """Let workers on CPU talk through gloo alone, so that no machine needs a compiler.

    On its first use DeepSpeed would compile an op that moves tensors through shared memory, and compile it again in every
    new environment. It does so only if its table of ops that this machine could compile has the op. DeepSpeed fills the
    table when it is first read, by starting compilers; a table that is there already is taken as it is. 0.19.8 has no
    public switch.
    """
    import deepspeed.ops

    table = {"deepspeed_shm_comm": False}
    deepspeed.ops.__compatible_ops__ = table  # pyright: ignore[reportAttributeAccessIssue] -- made when first read


def _process_group(backend: str) -> None:
    """A group of one for a process that Ray Train did not give one."""
    import torch.distributed as dist

    alone = not dist.is_initialized()
    if alone:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage] -- documented, yet not re-exported
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"})
    forget_groups(alone)


def forget_groups(all_gone: bool) -> None:
    """Make DeepSpeed forget process groups that ended with an earlier sequence, so that it makes new ones.

    It keeps its communicator (`cdb`) and its groups in variables of two modules, for the life of the process, and has no
    public function that clears them. `all_gone` says that every group is from earlier; else the world group tells.
    """
    import deepspeed.comm.comm as ds_comm
    from deepspeed.utils import groups

    if not all_gone and (groups._WORLD_GROUP is None or _stands(groups._WORLD_GROUP)):
        return
    ds_comm.cdb = None
    for name, value in vars(groups).items():
        if name.startswith("_") and "_GROUP" in name:
            setattr(groups, name, {} if isinstance(value, dict) else None)


def _stands(group: Any) -> bool:
    """Whether a process group still belongs to this process's world: an earlier sequence's does not."""
    import torch.distributed as dist

    try:
        dist.get_process_group_ranks(group)
    except (KeyError, ValueError):
        return False
    return True


def keep_whole(engine: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Let penalties read what trains from the first step on.

    Parameters below the persistence threshold stay gathered, but only once DeepSpeed has traced a whole step: in the
    first one it releases everything after use, unless it is marked as used elsewhere. The public
    `register_external_parameter` gathers a parameter for a module that uses it, and still releases it afterwards.
    """
    for parameter in parameters:
        parameter.is_external_param = True  # pyright: ignore[reportAttributeAccessIssue] -- DeepSpeed's own mark
    persistent = engine.optimizer.persistent_parameters
    persistent[0].all_gather(persistent)


def unpartition(engine: Any) -> None:
    """Turn ZeRO-3's partitioned parameters back into ordinary ones.

    The next stage's engine takes a parameter that still has one of the `ds_` attributes for one that is partitioned.
    """
    import deepspeed

    for parameter in engine.module.parameters():
        if not hasattr(parameter, "ds_id"):
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            whole = parameter.data.clone()
        parameter.data = whole
        for name in [name for name in vars(parameter) if name.startswith("ds_")]:
            delattr(parameter, name)
