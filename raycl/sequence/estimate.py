"""What a run would take on a machine that need not be here: a look ahead, with assumptions where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raycl.analysis.cost import LINK_BYTES, shared_out
from raycl.analysis.estimate import Estimate
from raycl.analysis.outlook import FP32, Outlook
from raycl.errors import SpecError
from raycl.models.precision import gpus as gpus_here
from raycl.sequence.driver import Options
from raycl.sequence.outlook import Hardware, Lookout, machine_of
from raycl.sequence.rates import KINDS, asked_kind, kind_of, stated, timed
from raycl.sequence.speeds import Machine
from raycl.spec import RunSpec
from raycl.train.workers import local_device

GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """The hardware that a user has in mind."""

    gpus: int | None = None
    """None = the machine at hand."""
    gpu: str | None = None
    """Their kind; none = that of this machine's GPU, or else h100."""

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus < 1:
            raise SpecError(f"--gpus {self.gpus}: allowed: 1 or more; leave it out for the machine at hand")
        if self.gpu is not None and self.gpus is None:
            raise SpecError(f"--gpu {self.gpu}: say how many with --gpus N, or leave it out for the machine at hand")


def estimate(spec: RunSpec, options: Options, asked: Asked) -> Estimate:
    """A run's time, store and memory. Nothing is written, trained or fetched but a model's configuration and tokenizer.

    Raises UserError as `look_ahead`.
    """
    spec, hardware = imagine(spec, asked)
    return estimated(spec, Lookout(options, hardware).look(spec), asked)


def imagine(spec: RunSpec, asked: Asked) -> tuple[RunSpec, Hardware]:
    """A spec as it would be run on the hardware, and the hardware. Raises SpecError for an unknown kind of GPU."""
    precision = "bf16" if spec.model.precision == "bf16" else "fp32"
    if asked.gpus is None:
        machine = machine_of(spec)
        elsewhere = machine.device == "cuda" and not gpus_here()
        rates = stated(asked_kind(None), precision) if elsewhere else timed(_device(machine), precision)
        return spec, Hardware(machine, rates)
    kind = asked_kind(asked.gpu)
    spec = fitted(spec, asked.gpus)
    return spec, Hardware(Machine("cuda", kind, spec.workers or 1), stated(kind, precision))


def _device(machine: Machine) -> str:
    """Where a product is timed."""
    return "cpu" if machine.device == "cpu" else local_device()


def fitted(spec: RunSpec, gpus: int) -> RunSpec:
    """A spec whose batch is shared out over as many of the GPUs as it splits over, in the largest micro-batches that fit."""
    workers = shared_out(spec.train.batch_size, gpus)
    each = spec.train.batch_size // workers
    micro = shared_out(each, spec.train.micro_batch_size or each)
    train = spec.train.model_copy(update={"micro_batch_size": micro})
    return spec.model_copy(update={"workers": workers, "train": train})


def estimated(spec: RunSpec, outlook: Outlook, asked: Asked) -> Estimate:
    """An outlook with what it stands on."""
    return Estimate(spec.model_dump(mode="json"), outlook, asked.gpus or 0, tuple(_assumptions(spec, outlook, asked)))


def _assumptions(spec: RunSpec, outlook: Outlook, asked: Asked) -> Iterator[str]:
    speed, rates, workers = outlook.speed, outlook.rates, outlook.workers
    if speed is not None:
        yield f"training and passes: measured, {speed.tokens_per_s:,.0f} tokens/s of {speed.stages} stored stages"
    if outlook.scoring.seconds_per_example is not None:
        yield "scoring: measured on the stored cells of this sequence"
    if rates is not None and (speed is None or outlook.scoring.seconds_per_example is None):
        yield f"speed of each process: {rates.source}"
    base = "three" if spec.model.gradient_checkpointing else "two"
    yield (
        f"a micro-batch forward and back: {base} forward passes of the base model and its branches, and one more of what "
        "trains; branches of all earlier stages are computed, where the method keeps them"
    )
    if asked.gpus is not None:
        yield _sharing(spec, workers, asked.gpus)
    if workers > 1:
        yield (
            f"work is shared out evenly; each step exchanges {FP32 * outlook.trained / 2**20:,.1f} MiB of gradients at "
            f"{LINK_BYTES / 1e9:g} GB/s"
        )
    yield "answers are as long as the longest that training has, but no longer than the task allows"
    yield "not counted: start of processes, loading of weights, a method's own sums, penalties and decompositions"
    kind = kind_of(asked_kind(asked.gpu)) if asked.gpus is not None else None
    if kind and outlook.memory.total > KINDS[kind].memory:
        yield (
            f"the memory of one process is more than the {KINDS[kind].memory / GIB:.0f} GiB of a {kind}: take a smaller "
            "train.micro_batch_size, model.gradient_checkpointing=true, or a higher train.zero_stage"
        )


def _sharing(spec: RunSpec, workers: int, gpus: int) -> str:
    """How the GPUs are used."""
    shape = f"{workers} processes, {spec.train.batch_size // workers} each, {spec.train.micro_batch_size} at a time"
    more = f"; the {gpus} GPUs hold {gpus // workers} such runs at once" if gpus >= 2 * workers else ""
    idle = f"; {gpus - workers} of the {gpus} GPUs have nothing to do" if workers < gpus < 2 * workers else ""
    return f"a global batch of {spec.train.batch_size} rows goes to {shape}{more}{idle}"
