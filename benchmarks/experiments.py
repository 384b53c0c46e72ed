"""Experiments, which settle what the methods' settings bring: `python benchmarks/experiments.py --data DIR`.

    --plan                         what would run, and what the store has of it
    --only A,B --seeds 0,1,2       run these (letters: see experiment_list.py; D and G train nothing)
    --processes 8 --seconds 500    several sequences at once, as a GPU has room for, and an end to it
    --report                       only write the page from what is finished

Sequences are cells of a comparison, letter by letter and in each letter pairs of order and seed outermost, so that what is
finished first can be compared. All of it goes through the stage store: an interrupted run continues, and experiments share
stages. benchmarks/results/experiments.json and .md are written from whatever the store has.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dilution import dilution
from experiment_list import COMPARISON, DILUTED, EXPERIMENTS, arms_of, grid_of
from experiment_report import Figures, choice, differences, figures, keys_of, page
from paired_bootstrap import compared, request_of
from pool import OUT_OF_TIME, run_cells
from quality import RESULTS

from raycl.comparison.grid import GridCell, make_grid
from raycl.files import home, write_json, write_text
from raycl.state.store import Store
from raycl.tasks.orders import order_title

ORDERS, SEEDS = ["std-1", "std-2"], [0, 1, 2]
LETTERS = (*EXPERIMENTS, "D", "G")


@dataclass
class Planned:
    """All cells there are, whether they are to be run or only reported."""

    test: dict[str, list[GridCell]]
    """By experiment."""
    validation: dict[str, list[GridCell]] = field(default_factory=dict)
    """The same arms scored on validation rows, for experiments that choose a rate."""
    failures: dict[str, str] = field(default_factory=dict)
    """Name of a cell -> why it failed."""

    def of(self, letters: list[str]) -> Iterator[GridCell]:
        """The cells of some experiments, letter by letter."""
        return (cell for one in letters for cell in (*self.test.get(one, ()), *self.validation.get(one, ())))


def main() -> None:
    """Plan, run, report."""
    chosen = arguments()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    store = Store(chosen.store or str(home() / "store"))
    planned = plan(chosen, store)
    known = known_sequences()
    wanted = [
        cell
        for cell in planned.of(chosen.only)
        if cell.seed in chosen.seeds and (split_of(cell), *keys_of(cell)) not in known
    ]
    if chosen.plan:
        show(wanted)
        return
    fresh: dict[str, Any] = {}
    if not chosen.report:
        store.check_usable()
        for cell, failure in run_cells(wanted, chosen.processes, chosen.seconds):
            print(f"{'failed' if failure else 'finished'}: {name_of(cell)} {failure or ''}".rstrip(), flush=True)
            if failure and failure != OUT_OF_TIME:
                planned.failures[cell.name] = failure
        if "D" in chosen.only:
            fresh["D"] = dilution(planned.test[DILUTED], read_known()["D"])
        if "G" in chosen.only:
            fresh["G"] = compared(planned.test["G"])
    report(planned, fresh)
    print(f"written: {RESULTS / 'experiments.md'}")


def arguments() -> argparse.Namespace:
    """The command line; lists are written with commas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the benchmark")
    parser.add_argument("--only", type=letters, default=list(LETTERS), help=f"of {', '.join(LETTERS)}  [default: all]")
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=SEEDS)
    parser.add_argument("--processes", type=int, default=1, help="sequences that run at once  [default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=None, help="begin no stage after so long  [default: no end]")
    parser.add_argument("--plan", action="store_true", help="only show what would run")
    parser.add_argument("--report", action="store_true", help="only write the page from what is finished")
    parser.add_argument("--store", help="stage store  [default: raycl's own]")
    parser.add_argument(
        "--comparison", type=Path, help="folder of a comparison whose answers G resamples, with its store"
    )
    return parser.parse_args()


def letters(text: str) -> list[str]:
    """Letters of experiments; a wrong one is an argparse error."""
    found = text.split(",")
    if unknown := sorted(set(found) - set(LETTERS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; allowed: {', '.join(LETTERS)}")
    return found


def plan(chosen: argparse.Namespace, store: Store) -> Planned:
    """Every cell of every experiment: the page shows all that is finished."""
    planned = Planned({})
    for letter, experiment in EXPERIMENTS.items():
        what = arms_of(experiment), list(experiment.orders), list(experiment.seeds), chosen.data, experiment.settings
        planned.test[letter] = make_grid(grid_of(*what), 0, store)
        if experiment.rates:
            planned.validation[letter] = make_grid(grid_of(*what, validation=True), 0, store)
    planned.test["G"] = comparison_cells(chosen, store)
    return planned


def comparison_cells(chosen: argparse.Namespace, store: Store) -> list[GridCell]:
    """The cells whose answers are resampled: those of a comparison's folder, or of the one in benchmarks/results."""
    if chosen.comparison is None:
        return make_grid(grid_of(COMPARISON, ORDERS, [0, 1], chosen.data), 0, store)
    grid, store = request_of(chosen.comparison)
    data = grid.settings.get("data", {}) | {"source": chosen.data}
    return make_grid(grid.model_copy(update={"settings": grid.settings | {"data": data}}), 0, store)


def show(cells: list[GridCell]) -> None:
    """What each cell lacks, and what is to do for all of them: shared stages count once."""
    stages: set[str] = set()
    scores: set[str] = set()
    for cell in cells:
        if cell.job is None:
            print(f"cannot run: {cell.name}: {cell.error}")
            continue
        missing = cell.missing()
        new = {stage.key for stage in cell.job.plan.stages if stage.stage in missing.stages} - stages
        stages |= new
        scores |= missing.cells
        words = f"{len(new)} stages to train, {len(missing.cells)} scores to make" if missing else "in the store"
        print(f"{name_of(cell)}: {words}")
    print(f"{len(cells)} sequences, {len(stages)} stages to train, {len(scores)} scores to make")


def split_of(cell: GridCell) -> str:
    """The rows that a cell is scored on."""
    return cell.job.spec.data.test_split if cell.job else "test"


def name_of(cell: GridCell) -> str:
    """A cell's name, with the rows it is scored on where they are not the test split's."""
    return cell.name if split_of(cell) == "test" else f"{cell.name}  ({split_of(cell)})"


def read_known() -> dict[str, Any]:
    """The last results: what D and G found is kept, the rest is read from the store each time."""
    path = RESULTS / "experiments.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"D": [], "G": []}


def known_sequences() -> set[tuple[str, ...]]:
    """Split and stage keys of every sequence that experiments.json has figures of, made on whatever machine."""
    found = [record for letter, record in read_known().items() if letter in EXPERIMENTS]
    splits = {"test": "sequences", "validation": "validation"}
    return {
        (split, *row["stage_keys"])
        for record in found
        for split, rows in splits.items()
        for row in record.get(rows, ())
    }


def report(planned: Planned, fresh: dict[str, Any]) -> None:
    """Write both files from what is finished; `fresh` is what D and G found in this call."""
    known = read_known() | fresh
    record: dict[str, Any] = {"D": known["D"], "G": known["G"]}
    elsewhere = [row for letter in EXPERIMENTS for row in known.get(letter, {}).get("sequences", ())]
    for letter, experiment in EXPERIMENTS.items():
        cells = planned.test[letter]
        before = known.get(letter, {})
        rows = figures(cells, [*before.get("sequences", ()), *elsewhere])
        record[letter] = {
            "question": experiment.question,
            "arms": experiment.arms,
            "sequences": rows,
            "differences": differences(rows, experiment.against),
            "not run": not_run(cells, rows, planned.failures),
        }
        if experiment.rates and (validated := figures(planned.validation[letter], before.get("validation", ()))):
            record[letter] |= {"validation": validated, "choice": choice(rows, validated)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "experiments.json", record)
    write_text(RESULTS / "experiments.md", page(record))


def not_run(cells: list[GridCell], rows: list[Figures], failures: dict[str, str]) -> list[str]:
    """What is not finished, arm by arm; a failed cell with its reason."""
    finished = {(row["label"], row["order"], row["seed"]) for row in rows}
    left: dict[str, list[str]] = {}
    for cell in cells:
        if (cell.entry.label, cell.order, cell.seed) not in finished:
            reason = cell.error or failures.get(cell.name)
            words = f"{order_title(cell.order)} seed {cell.seed}" + (f" ({reason})" if reason else "")
            left.setdefault(cell.entry.label, []).append(words)
    return [f"{label}: {', '.join(words)}" for label, words in left.items()]


if __name__ == "__main__":
    main()
