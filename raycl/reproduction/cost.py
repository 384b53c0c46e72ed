"""A rough estimate of what a reproduction costs on GPUs, before anything runs.

    training    4 N L n e operations a stage: N weights, L tokens an example, n examples, e epochs; forward 2 N, and 2 N
                back through frozen weights. Training all weights costs 6 N.
    scoring     2 N (L + G) for each test example of each task seen after each stage, G tokens being written
    GPU-hours   operations / (100e12 a second and GPU) / 3600: about a third of an A100's bf16 peak

The lengths and the rate are assumptions, not measurements. Take the result as an order of magnitude: writing token by
token runs well below that rate, data passes, replayed rows and what SuperNI's longer texts add are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raycl.fields import at_stage
from raycl.methods.registry import method_class
from raycl.reproduction.form import MODELS
from raycl.reproduction.specs import Sequence
from raycl.spec import RunSpec

OPERATIONS_PER_SECOND = 100e12
TOKENS = {"superni": 300, "long": 150}
"""Assumed mean length of prompt and answer, in tokens."""
WRITTEN = {"superni": 30, "long": 4}
"""Assumed tokens of an answer."""
EXAMPLES = {
    **{"yelp": (5000, 7600), "amazon": (5000, 7600), "imdb": (2000, 7600), "sst2": (2000, 872)},
    **{"dbpedia": (14000, 7600), "agnews": (4000, 7600), "yahoo": (10000, 7600), "mnli": (3000, 7600)},
    **{"cb": (250, 56), "rte": (2000, 277), "qqp": (2000, 7600), "boolq": (2000, 3270), "copa": (400, 100)},
    **{"multirc": (2000, 4848), "wic": (2000, 638)},
}
"""Train and test examples of the published files; some are estimates."""
SUPERNI = (1000, 100)
"""The same for a SuperNI task; five tasks have fewer."""


@dataclass(frozen=True)
class Cost:
    """What a reproduction runs."""

    sequences: int
    stages: int
    """Stage runs; some are shared between sequences, so this is an upper bound."""
    gpu_hours: float


def estimate(runs: Iterable[Sequence]) -> Cost:
    """The cost of all different sequences among `runs`, at paper scale."""
    distinct = {run.spec.model_dump_json(): run for run in runs}.values()
    stages = sum(1 if _joint(run.spec) else len(run.spec.tasks) for run in distinct)
    seconds = (
        sum(_operations(run.spec, MODELS[run.column.model].parameters) for run in distinct) / OPERATIONS_PER_SECOND
    )
    return Cost(len(distinct), stages, seconds / 3600)


def _joint(spec: RunSpec) -> bool:
    return method_class(spec.method.name).joint


def _operations(spec: RunSpec, weights: float) -> float:
    """Training and scoring of one sequence."""
    full = spec.method.name == "seq_ft" or getattr(spec.method, "trains", "lora") == "full"
    rows = len(spec.tasks)
    total = 0.0
    for stage, task in enumerate(spec.tasks, start=1):
        kind = "superni" if task.startswith("task") else "long"
        train, test = EXAMPLES.get(task, SUPERNI)
        times_scored = 1 if _joint(spec) else rows - stage + 1
        epochs = at_stage(spec.train.epochs, stage)
        total += (6 if full else 4) * weights * TOKENS[kind] * train * epochs
        total += 2 * weights * (TOKENS[kind] + WRITTEN[kind]) * test * times_scored
    return total
