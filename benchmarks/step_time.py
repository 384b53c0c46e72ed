"""What a training step costs after many tasks, against a plain LoRA's:

    python benchmarks/step_time.py --shape packaged --branches 1,15,64 [--methods gain_lora,am_lora] [--repeats 15]

Steps of every method with T frozen branches and of a PEFT LoRA of the same rank (`peft.get_peft_model`), on the same weights
and batch, in turn:

    one LoRA    median over the rounds of (seconds of the method's step / seconds of the LoRA's in the same round)
    floor       the same ratio in multiply-adds of all linear layers, forward and backward: the least that it can be
    memory      bytes at the end of a forward pass (on a GPU: the most in a step), over those with no frozen branch and what
                the T branches hold themselves
    penalty     of O-LoRA's step, the share that its penalty takes

A step is the forward pass, the penalties, the backward pass, clipping and AdamW; the engine and the loss are a stage's own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from made_up import made_up_state
from shapes import NAMES, PACKAGED, backbone_of
from steps import SIZES, WALL, Clock, Sizes, TrainingStep, batch, in_turn, method_of, ratio, twin
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.branches import lora_config
from raycl.adapters.carriers import carries_branch, widths
from raycl.adapters.predicting import precision
from raycl.adapters.targets import chosen
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.models.precision import native_precision
from raycl.state.stage_state import StageState
from raycl.train.module import StageModule
from raycl.train.workers import cores, set_threads

METHODS = ("gain_lora", "am_lora", "o_lora", "inf_lora", "inc_lora", "slao")
ONE_LORA = "one LoRA"
MEMORY_AT = 15
"""Frozen branches at which memory and the penalty are measured."""


class PeftLora(LoraMethod[LoraParams]):
    """What everybody trains without raycl: one LoRA that PEFT puts on the model."""

    def install(self, backbone: Backbone, state: StageState) -> None:
        """PEFT's own layers on the backbone; the state has no part in it."""
        from peft import get_peft_model

        get_peft_model(backbone.model, lora_config(backbone, self.params.shape))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Case:
    """What is measured on: a base model, the rank of all branches, a batch, and how often."""

    backbone: Backbone
    rank: int = 8
    sizes: Sizes = SIZES
    rounds: int = 15
    clock: Clock = WALL

    @property
    def inputs(self) -> Inputs:
        """The batch of all steps."""
        return batch(self.backbone, self.sizes)

    def step(self, name: str, tasks: int) -> TrainingStep:
        """A method after so many tasks, on a twin of the base model."""
        state = made_up_state(name, self.backbone, self.rank, tasks)
        return TrainingStep(twin(self.backbone), method_of(name, self.rank, tasks + 1), state, self.inputs)

    def one_lora(self) -> TrainingStep:
        """PEFT's LoRA on a twin of the base model."""
        return TrainingStep(twin(self.backbone), self.peft(), StageState(), self.inputs)

    def peft(self) -> PeftLora:
        """PEFT's LoRA, on no model yet."""
        like = method_of("sin_lora", self.rank, 1)
        return PeftLora(like.params, like.info)


@dataclass(frozen=True)
class StepCost:
    """A method's step after many tasks."""

    seconds: float
    """Median of the method's step."""
    one_lora: float
    """Median of a plain LoRA's."""
    ratio: float
    """Median of the rounds' ratios."""
    floor: float
    """The same ratio in multiply-adds."""


def step_costs(case: Case, methods: Sequence[str], tasks: int) -> dict[str, StepCost]:
    """Measure the steps of methods after so many tasks and a plain LoRA's, in turn."""
    steps = {ONE_LORA: case.one_lora()} | {name: case.step(name, tasks) for name in methods}
    seconds = in_turn(steps, case.rounds, case.clock)
    plain = seconds[ONE_LORA]
    return {
        name: StepCost(
            statistics.median(seconds[name]),
            statistics.median(plain),
            ratio(seconds[name], plain),
            floor(case, frozen_branches(name, tasks)),
        )
        for name in methods
    }


def frozen_branches(name: str, tasks: int) -> int:
    """Frozen branches that a method computes after so many tasks: none where one branch trains on, as SLAO's."""
    return 0 if name == "slao" else tasks


def floor(case: Case, frozen: int) -> float:
    """Multiply-adds of a step with so many frozen branches beside the trained one, over those without them.

    A frozen weight is multiplied twice, forward and for the gradient of its input, a trained one three times.
    """
    tokens, backbone = tokens_of_linears(case), case.backbone
    sizes = {path: widths(backbone.model.get_submodule(path)) for path in tokens}
    base = sum(2 * tokens[path] * d_in * d_out for path, (d_in, d_out) in sizes.items())
    branch = sum(tokens[path] * case.rank * sum(sizes[path]) for path in tokens if adapted(backbone, path))
    return (base + 3 * branch + 2 * frozen * branch) / (base + 3 * branch)


def adapted(backbone: Backbone, path: str) -> bool:
    """Whether a linear module gets branches by default."""
    return bool({path, path.rpartition(".")[2]} & set(chosen(backbone, None)))


def tokens_of_linears(case: Case) -> dict[str, int]:
    """Tokens that each linear module of the base model sees in a step, by path."""
    own = twin(case.backbone)
    seen: dict[str, int] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: seen.update({path: args[0].shape[:-1].numel()})

    for path, module in own.model.named_modules():
        if carries_branch(module):
            module.register_forward_pre_hook(note(path))
    with torch.no_grad(), precision(own):
        StageModule(own, case.peft()).predict(case.inputs)
    return seen


def memory_ratio(case: Case, name: str, tasks: int) -> float:
    """Memory of a method's step after so many tasks, over that of its first stage's and what the tasks' branches hold."""
    first, later = (step_bytes(case, name, count) for count in (0, tasks))
    return later / (first + own_bytes(made_up_state(name, case.backbone, case.rank, tasks), case.backbone.dtype))


def own_bytes(state: StageState, dtype: torch.dtype) -> int:
    """What the branches of a state hold, in the model's precision, with the tensors that weigh them, in fp32."""
    branches = sum(one.numel() for branch in state.branches for one in (*branch.a.values(), *branch.b.values()))
    return branches * dtype.itemsize + 4 * sum(one.numel() for part in state.parts for one in part.tensors.values())


def step_bytes(case: Case, name: str, tasks: int) -> int:
    """Bytes that a step of a method needs, with the base model's: on a GPU the most that it allocates; on a CPU, where no
    allocator counts, all tensors that live when the forward pass is over, with those that it saved for the backward pass."""
    device = case.backbone.device
    gc.collect()
    before = held(live_tensors(device))
    step = case.step(name, tasks)
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step.loss()
    gc.collect()
    own = held([*case.backbone.model.parameters(), *case.backbone.model.buffers()])
    return own + held([*live_tensors(device), *saved, loss]) - before


def live_tensors(device: torch.device) -> list[Tensor]:
    """All tensors on a device that Python knows of."""
    found = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]  # a compiler leaves made-up ones
    return [one for one in found if one.device == device]


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def penalty_share(case: Case, tasks: int) -> float:
    """The share of O-LoRA's step after so many tasks that its penalty takes, forward and backward."""
    step = case.step("o_lora", tasks)
    seen = step.forward()

    def alone() -> None:
        torch.stack([term.raw * term.weight for term in step.method.penalties(seen).values()]).sum().backward()

    seconds = in_turn({"step": step, "penalty": alone}, case.rounds, case.clock)
    return ratio(seconds["penalty"], seconds["step"])


def main() -> None:
    """Measure and print."""
    chosen = arguments()
    set_threads(chosen.threads)
    backbone = backbone_of(chosen.shape, chosen.layers, chosen.precision, chosen.device)
    clock = Clock(chosen.device, chosen.clock == "cpu")
    case = Case(backbone, chosen.rank, Sizes(chosen.rows, chosen.tokens), chosen.repeats, clock)
    print(
        f"{chosen.shape}{'' if chosen.shape == PACKAGED else f' of {chosen.layers} layers'}, rank {chosen.rank}, "
        f"{chosen.rows} x {chosen.tokens} tokens, {chosen.precision} on {chosen.device}, {chosen.threads} threads, "
        f"torch {torch.__version__}; medians of {chosen.repeats} rounds in {chosen.clock} seconds"
    )
    print(f"{'method':<10} {'branches':>8} {'step s':>8} {'LoRA s':>8} {'ratio':>7} {'floor':>7} {'over floor':>10}")
    for tasks in chosen.branches:
        for name, cost in step_costs(case, chosen.methods, tasks).items():
            print(
                f"{name:<10} {tasks:>8} {cost.seconds:>8.3f} {cost.one_lora:>8.3f} {cost.ratio:>7.3f} {cost.floor:>7.3f} "
                f"{cost.ratio / cost.floor:>10.3f}",
                flush=True,
            )
    for name in chosen.methods:
        share = memory_ratio(case, name, MEMORY_AT)
        print(f"{name}: memory at {MEMORY_AT} branches, over one branch and what they hold: {share:.3f}", flush=True)
    if "o_lora" in chosen.methods:
        print(
            f"o_lora: its penalty's share of a step at {MEMORY_AT} branches: {100 * penalty_share(case, MEMORY_AT):.2f} %"
        )


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--shape", choices=NAMES, default=PACKAGED)
    parser.add_argument("--layers", type=int, default=4, help="of every shape but the packaged model")
    parser.add_argument("--branches", type=_numbers, default=[1, 15, 64], help="frozen branches: 1,15,64")
    parser.add_argument("--methods", type=_names, default=list(METHODS), help=",".join(METHODS))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of each prompt")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=native_precision())
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU seconds, for a machine in use"
    )
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(METHODS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; there are {', '.join(METHODS)}")
    return names


if __name__ == "__main__":
    main()
