"""The figures of `benchmarks/experiments.py`, from whatever sequences are finished, and their page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from experiment_list import EXPERIMENTS, Experiment

from raycl.analysis.stats import sign_flip_p, spread
from raycl.comparison.grid import GridCell
from raycl.report.cards import markdown_table
from raycl.sequence.history import stored_matrix
from raycl.sequence.job import SequenceJob

MEASURES = ("LA", "FT", "AP")
Figures = dict[str, Any]
"""One finished sequence: label, order, seed, its measures, its matrix and what names its stages."""
HEAD = """# Experiments

Each asks one question on the pairs of order and seed, with the packaged 135M model and the budget of
[comparison.yaml](../comparison.yaml) (200 training and 100 test examples a task, one epoch, rank 8; alpha 32 and learning
rate 1e-3 unless experiments.json says otherwise). LA is the mean score of each task right after its own stage, FT forgetting
(lower is better), AP the mean score at the end. Differences are taken pair by pair; SE is their standard error, p the exact
sign-flip test's (from 5 pairs on, uncorrected; the least that 6 pairs can give is 0.031).
"""


def keys_of(cell: GridCell) -> list[str]:
    """What names a sequence's stages; empty for one that cannot run."""
    return [stage.key for stage in cell.job.plan.stages] if cell.job else []


def figures(cells: Sequence[GridCell], known: Sequence[Figures] = ()) -> list[Figures]:
    """The finished sequences among the cells: as `known` has them under the same stage keys, whatever machine made them, or
    else read from the store. What is known stays what it was, so that pairs made on one machine stay pairs; the first that
    has the keys counts, whatever its label."""
    found = []
    for cell in cells:
        same = (cell.order, cell.seed, keys_of(cell))
        kept = [
            row | {"label": cell.entry.label} for row in known if (row["order"], row["seed"], row["stage_keys"]) == same
        ]
        if kept or cell.job is None or cell.missing():
            found += kept[:1]
            continue
        matrix = stored_matrix(cell.job.store, cell.job.plan, cell.job.spec.tasks)
        values = [known_value(value) for value in (matrix.learning_accuracy(), matrix.forgetting(), matrix.ap())]
        found.append(
            {
                "label": cell.entry.label,
                "order": cell.order,
                "seed": cell.seed,
                **dict(zip(MEASURES, values, strict=True)),
                "AP after two": matrix.ap(2),
                "matrix": matrix.to_json(),
                "stage_keys": keys_of(cell),
                "made on": made_on(cell.job),
            }
        )
    return found


def known_value(value: float) -> float | None:
    """A measure, or none where the sequence has no such one: a method with one stage for all tasks forgets nothing."""
    return None if math.isnan(value) else value


def made_on(job: SequenceJob) -> str:
    """Device and torch of a sequence's last stage."""
    manifest = job.store.manifest(job.plan.stages[-1].key)
    name = manifest.runtime.get("device_name") or manifest.runtime["device"]
    return f"{name}, torch {manifest.environment['libraries']['torch']}"


def differences(rows: Sequence[Figures], against: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """For each pair of labels, first minus second on the pairs of order and seed that both finished."""
    known = {(row["label"], row["order"], row["seed"]): row for row in rows}
    found = []
    for first, second in against:
        pairs = [key[1:] for key in known if key[0] == first and (second, *key[1:]) in known]
        taken = {
            measure: [known[(first, *pair)][measure] - known[(second, *pair)][measure] for pair in pairs]
            for measure in MEASURES
        }
        found.append({"first": first, "second": second, "pairs": [list(pair) for pair in pairs], **taken})
    return found


def chosen(validated: Sequence[Figures], order: str, measure: str) -> str | None:
    """The label with the best mean of a validation measure over an order's seeds, the first of equal ones; none if none is
    scored."""
    rows = [row for row in validated if row["order"] == order]
    means = {
        label: mean(row[measure] for row in rows if row["label"] == label)
        for label in dict.fromkeys(row["label"] for row in rows)
    }
    return max(means, key=lambda label: means[label]) if means else None


def choice(rows: Sequence[Figures], validated: Sequence[Figures]) -> dict[str, Any]:
    """What is chosen after two and after four validation tasks, order by order, and what the later choice brings on test."""
    orders = list(dict.fromkeys(row["order"] for row in validated))
    late = {order: chosen(validated, order, "AP") for order in orders}
    early = {order: chosen(validated, order, "AP after two") for order in orders}
    picked = [row | {"label": "late"} for row in rows if row["label"] == late.get(row["order"])]
    picked += [row | {"label": "early"} for row in rows if row["label"] == early.get(row["order"])]
    return {"after two": early, "after four": late, "difference": differences(picked, [("late", "early")])[0]}


# --- the page --------------------------------------------------------------------------------------------------------


def page(record: dict[str, Any]) -> str:
    """All experiments in Markdown."""
    lines = [HEAD]
    for letter, experiment in EXPERIMENTS.items():
        lines += [f"## {letter}. {experiment.question}", "", *_experiment(experiment, record[letter]), ""]
    lines += ["## D. Is softmax dilution all of AM-LoRA's forgetting?", "", *_dilution(record["D"]), ""]
    lines += ["## G. What do the test examples alone leave open?", "", *_bootstrap(record["G"]), ""]
    return "\n".join([*lines, *COMMANDS])


COMMANDS = [
    "## Commands",
    "",
    "```sh",
    "python benchmarks/experiments.py --data DIR --plan     # DIR: the 15-task benchmark",
    "python benchmarks/experiments.py --data DIR --only A,B --seeds 0,1,2",
    "python benchmarks/experiments.py --data DIR --only C,E,F --processes 12 --seconds 500   # on a GPU",
    "```",
    "",
]


def _experiment(experiment: Experiment, record: dict[str, Any]) -> list[str]:
    """Means of every arm, paired differences, and what was not run."""
    rows = record["sequences"]
    lines = []
    if rows:
        means = [_mean_line(label, [row for row in rows if row["label"] == label]) for label in experiment.arms]
        lines += [markdown_table(("arm", "n", *MEASURES), [line for line in means if line]), ""]
        lines += _differences(record["differences"])
        lines += [f"Made on {'; '.join(sorted({row['made on'] for row in rows}))}.", ""]
    if record.get("choice"):
        found = record["choice"]
        picks = [(order, found["after two"][order], found["after four"][order]) for order in found["after two"]]
        lines += [markdown_table(("order", "chosen after two", "chosen after four"), picks), ""]
        lines += _differences([found["difference"]])
    return [*lines, *_missing(record["not run"])]


def _mean_line(label: str, rows: Sequence[Figures]) -> tuple[Any, ...] | None:
    """An arm's means over its finished sequences, with lowest and highest."""
    if not rows:
        return None
    return label, len(rows), *(_mean([row[measure] for row in rows]) for measure in MEASURES)


def _mean(values: Sequence[float | None]) -> str:
    """Mean with lowest and highest; a dash where a sequence has no such measure."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.1f} ({min(known):.1f} to {max(known):.1f})" if len(known) == len(values) else "-"


def _differences(found: Sequence[dict[str, Any]]) -> list[str]:
    """Paired differences as a table."""
    lines = [
        (f"{one['first']} - {one['second']}", len(one["pairs"]), *(_difference(one[measure]) for measure in MEASURES))
        for one in found
        if one["pairs"]
    ]
    return [markdown_table(("paired difference", "pairs", *MEASURES), lines), ""] if lines else []


def _difference(values: Sequence[float]) -> str:
    """Mean, standard error and p of paired differences."""
    known = spread(values)
    text = f"{known.mean:+.1f}"
    if known.n > 1:
        text += f", SE {known.sd / known.n**0.5:.1f}"
    return text + (f", p {sign_flip_p(values):.2f}" if known.n >= 5 else "")


def _missing(names: Sequence[str]) -> list[str]:
    """What was not run, if anything."""
    return ["Not run:", "", *(f"- {name}" for name in names)] if names else []


def _dilution(records: Sequence[dict[str, Any]]) -> list[str]:
    """First task's score under zero branches, beside what the sequence had."""
    if not records:
        return ["Not run: no first stage of AM-LoRA is in the store (experiment E makes them)."]
    head = ("arm", "order", "seed", "task", "zero branches: 0, 1, 2, 3", "after stages 1, 2, ...")
    rows = [
        (one["label"], one["order"], one["seed"], one["task"], _scores(one["diluted"]), _scores(one["after stages"]))
        for one in records
    ]
    words = "Nothing is trained: zero branches are added to the state after stage 1. Were dilution all, the two would agree."
    return [words, "", markdown_table(head, rows)]


def _scores(values: Sequence[float | None]) -> str:
    """Scores side by side, a dash where there is none."""
    return ", ".join("-" if value is None or value != value else f"{value:.0f}" for value in values)


def _bootstrap(found: Sequence[dict[str, Any]]) -> list[str]:
    """Differences of AP with intervals from resampled test examples."""
    if not found:
        return [
            "Not run: fewer than two methods of the comparison are in the store on a common pair of order and seed."
        ]
    words = "AP, 95 % intervals from resampled test examples alone: what orders and seeds add is not in them."
    rows = [
        (
            f"{one['first']} - {one['second']}",
            len(one["pairs"]),
            f"{one['difference']:+.2f}",
            f"{one['low']:+.2f} to {one['high']:+.2f}",
            ", ".join(f"{value:+.1f}" for value in one["each"]),
        )
        for one in found
    ]
    return [words, "", markdown_table(("difference", "pairs", "mean", "interval", "pair by pair"), rows)]
