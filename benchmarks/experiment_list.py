"""What `benchmarks/experiments.py` runs: each experiment's question, its sequences, and which of them are set against which.

An entry is written as `raycl compare --method` takes it; its values are explicit, so that a later default changes no key.
Learning rates are those that `benchmarks/quality.py` chose where they differ from the common one, 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quality import BRANCH, SHARED, VALIDATION

from raycl.comparison.grid import GridSpec
from raycl.files import Json
from raycl.presets import merge


@dataclass(frozen=True)
class Experiment:
    """One question, and the sequences that answer it on every pair of order and seed."""

    question: str
    arms: dict[str, str]
    """Label -> entry."""
    against: tuple[tuple[str, str], ...]
    """Pairs of labels: the difference first minus second is taken order by order and seed by seed."""
    rates: tuple[str, ...] = ()
    """Arms that differ in the learning rate alone: scored on validation rows too, and one is chosen there."""
    orders: tuple[str, ...] = ("std-1", "std-2")
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: Json = field(default_factory=dict)
    """Run-spec fields in place of the common budget's."""


def _layers(method: str, name: str, rate: str) -> dict[str, str]:
    """The three yardsticks of layer bases, for one method."""
    settings = {
        "0.995, power 1": "0.995,energy_power=1",
        "0.95": "0.95,energy_power=1",
        "power 2": "0.995,energy_power=2",
    }
    return {f"{name}, {label}": f"{method}epsilon={value}{rate}" for label, value in settings.items()}


def _against(name: str) -> tuple[tuple[str, str], ...]:
    """The new yardsticks against the old one, and against each other."""
    old, new, squares = (f"{name}, {label}" for label in ("0.995, power 1", "0.95", "power 2"))
    return (new, old), (squares, old), (new, squares)


INF, GAIN = "inf_lora", "gain over inf_lora"
RATES = ("3e-4", "1e-3", "3e-3")
ONE_INSTRUCTION = str(Path(__file__).with_name("one_instruction.yaml"))
"""A stream whose tasks share their instruction."""
SIMILAR = "custom:imdb,mnli,yelp,agnews,cb,sst2,rte,amazon"
"""Eight tasks, several with the same label words: sentiment in two and in five steps, inference three times, one topic."""
WRITTEN = "custom:task591,task1510,task748,task181,task875"
"""Five SuperNI tasks whose prompts are short: a question's answer, a relation, an event, what is measured, an emotion."""
ROUTED: Json = {"train": {"lr": 3e-3}}
"""The rate that `benchmarks/quality.py` chose for separate branches."""
EXPERIMENTS = {
    "A": Experiment(
        "How much of the layer inputs' energy should a basis hold, and how is it measured?",
        _layers("inf_lora:", INF, "") | _layers("gain_lora:over=inf_lora,", GAIN, ",train.lr=3e-3"),
        _against(INF) + _against(GAIN),
    ),
    "B": Experiment(
        "Do gates of a decoder-only model learn more from p_0 at RMS 1 than from p_0 as it is?",
        {"gain_lora, rms": "gain_lora:gate_input=auto", "gain_lora, raw": "gain_lora:gate_input=raw"},
        (("gain_lora, rms", "gain_lora, raw"),),
    ),
    "C": Experiment(
        "Is what GainLoRA learns less of the last tasks a matter of steps?",
        {
            "gain_lora, 1 epoch": "gain_lora:gate_input=auto",
            "gain_lora, 1 2 4 4 epochs": "gain_lora:gate_input=auto,train.epochs=[1, 2, 4, 4]",
            "o_lora, 1 epoch": "o_lora",
            "o_lora, 1 2 4 4 epochs": "o_lora:train.epochs=[1, 2, 4, 4]",
        },
        (
            ("gain_lora, 1 2 4 4 epochs", "gain_lora, 1 epoch"),
            ("o_lora, 1 2 4 4 epochs", "o_lora, 1 epoch"),
            ("gain_lora, 1 epoch", "o_lora, 1 epoch"),
            ("gain_lora, 1 2 4 4 epochs", "o_lora, 1 2 4 4 epochs"),
        ),
    ),
    "E": Experiment(
        "Is AM-LoRA's learning rate another one if it is chosen after four validation tasks instead of two?",
        {f"am_lora, {rate}": f"am_lora:train.lr={rate}" for rate in RATES},
        (("am_lora, 1e-3", "am_lora, 3e-4"), ("am_lora, 3e-3", "am_lora, 1e-3")),
        tuple(f"am_lora, {rate}" for rate in RATES),
    ),
    "F": Experiment(
        "What does SLAO owe to its alpha, to its merging and to its starts?",
        {
            "slao, alpha 32": "slao:alpha=32.0",
            "slao": "slao:alpha=16.0",
            "slao, preserve_function": "slao:alpha=16.0,preserve_function=true",
            "slao, no merging": "slao:alpha=16.0,merge_schedule=none",
        },
        (("slao", "slao, alpha 32"), ("slao, preserve_function", "slao"), ("slao, no merging", "slao")),
    ),
    "H": Experiment(
        "Does a router of the bare model's features end where separate models with the task id end?",
        {"per_task": "per_task", "route_lora": "route_lora", "route_lora, hidden": "route_lora:features=hidden"},
        (("route_lora", "per_task"), ("route_lora, hidden", "per_task")),
        settings=ROUTED,
    ),
    "I": Experiment(
        "The same where all tasks share one instruction and only the text tells them apart?",
        {
            "per_task": "per_task",
            "route_lora, text": "route_lora:region=text",
            "route_lora, text, hidden": "route_lora:region=text,features=hidden",
        },
        (("route_lora, text", "per_task"), ("route_lora, text, hidden", "per_task")),
        orders=("one-instruction/one-instruction",),
        settings=ROUTED | {"data": {"stream": ONE_INSTRUCTION}},
    ),
    "J": Experiment(
        "And on all 15 tasks, with twice the steps?",
        {
            "per_task": "per_task:train.lr=3e-3",
            "route_lora": "route_lora:train.lr=3e-3",
            "route_lora, text": "route_lora:region=text,train.lr=3e-3",
        },
        (("route_lora", "per_task"), ("route_lora, text", "per_task")),
        orders=("long-6",),
        settings={"data": {"train_examples": 400}},
    ),
    "K": Experiment(
        "Which methods stand apart where tasks are many and alike, with 50 steps a task?",
        {
            "sin_lora": "sin_lora",
            "inc_lora": "inc_lora",
            "o_lora": "o_lora",
            "inf_lora": "inf_lora",
            "gain_lora over o_lora": "gain_lora:over=o_lora",
            "gain_lora over inf_lora": "gain_lora:over=inf_lora",
            "am_lora": "am_lora",
            "slao": "slao:alpha=16.0",
            "replay, 2 %": "replay:share=0.02",
            "replay, 10 %": "replay:share=0.1",
            "route_lora": "route_lora",
            "per_task": "per_task",
            "mtl": "mtl",
        },
        (
            ("o_lora", "sin_lora"),
            ("gain_lora over o_lora", "o_lora"),
            ("gain_lora over o_lora", "sin_lora"),
            ("gain_lora over inf_lora", "inf_lora"),
            ("am_lora", "sin_lora"),
            ("am_lora", "o_lora"),
            ("slao", "sin_lora"),
            ("slao", "o_lora"),
            ("route_lora", "per_task"),
            ("route_lora", "o_lora"),
        ),
        orders=(SIMILAR,),
        settings={"data": {"train_examples": 400}},
    ),
    "L": Experiment(
        "Does a new branch of route_lora learn more if it starts from the nearest task's?",
        {"route_lora": "route_lora", "route_lora, nearest": "route_lora:init=nearest"},
        (("route_lora, nearest", "route_lora"),),
        orders=("custom:mnli,cb,rte", "custom:imdb,sst2,copa"),
        settings=ROUTED,
    ),
    "M": Experiment(
        "What do methods that keep one model, another optimizer or another loss add to LoRA trained in turn?",
        {
            "sin_lora": "sin_lora",
            "inc_lora": "inc_lora",
            "o_lora": "o_lora",
            "inf_lora": "inf_lora:epsilon=0.95,energy_power=1",
            "ella": "ella",
            "n_lora": "n_lora",
            "osf": "osf",
            "wise": "wise:share=0.5",
            "wise, mean": "wise:schedule=mean",
            "ogd": "ogd:examples=20",
            "gem": "gem:share=0.02,repeats=4",
            "inc_lora, muon": "inc_lora:train.optimizer=muon",
            "sin_lora, eaft": "sin_lora:train.loss=eaft",
            "sin_lora, base_kl": "sin_lora:train.base_kl=1.0",
        },
        (
            ("ella", "inc_lora"),
            ("n_lora", "inc_lora"),
            ("osf", "inc_lora"),
            ("wise", "inc_lora"),
            ("wise, mean", "inc_lora"),
            ("ogd", "sin_lora"),
            ("gem", "sin_lora"),
            ("inc_lora, muon", "inc_lora"),
            ("sin_lora, eaft", "sin_lora"),
            ("sin_lora, base_kl", "sin_lora"),
            ("inf_lora", "osf"),
        ),
    ),
    "N": Experiment(
        "And on five SuperNI tasks, whose answers are written and scored by ROUGE-L?",
        {
            "sin_lora": "sin_lora",
            "inc_lora": "inc_lora",
            "o_lora": "o_lora",
            "inf_lora": "inf_lora:epsilon=0.95,energy_power=1",
            "slao": "slao:alpha=16.0",
            "replay, 2 %": "replay:share=0.02",
            "route_lora": "route_lora",
            "per_task": "per_task",
        },
        (
            ("o_lora", "sin_lora"),
            ("inf_lora", "o_lora"),
            ("slao", "o_lora"),
            ("inf_lora", "slao"),
            ("replay, 2 %", "sin_lora"),
            ("route_lora", "per_task"),
        ),
        orders=(WRITTEN,),
        settings={"data": {"max_source_tokens": 224, "max_target_tokens": 24}},
    ),
}
DILUTED = "E"
"""The experiment whose first stages experiment D adds zero branches to."""
COMPARISON = ["sin_lora", "o_lora", "gain_lora:over=o_lora", "slao"]
"""The methods of benchmarks/results/comparison, whose predictions experiment G resamples."""


def grid_of(
    methods: list[str],
    orders: list[str],
    seeds: list[int],
    data: str,
    own: Json | None = None,
    validation: bool = False,
) -> GridSpec:
    """A comparison under the common budget and settings of its `own`; with `validation` scored on train rows that training
    does not use."""
    split = {"test_split": "validation", "test_examples": VALIDATION} if validation else {}
    settings = merge(SHARED, {"method": BRANCH}, own or {}, {"data": {"source": data} | split})
    shared: Json = {"bounds": False, "preset": "laptop", "settings": settings, "overrides": {}}
    return GridSpec(methods=methods, orders=orders, seeds=seeds, **shared)


def arms_of(experiment: Experiment) -> list[str]:
    """An experiment's entries under their labels."""
    return [f"{label}={entry}" for label, entry in experiment.arms.items()]
