"""Experiments A to G, which settle what the methods' settings bring: `python benchmarks/experiments.py --data DIR`.

    --plan                                   what would run, and what the store has of it
    --only A,B --orders 1,2 --seeds 0,1,2    run these (letters: see experiment_list.py; D and G train nothing)
    --report                                 only write the page from what is finished

Sequences are cells of a comparison, one after another in this process, pairs of order and seed outermost, so that what is
finished first can be compared. All of it goes through the stage store: an interrupted run continues, and experiments share
stages. benchmarks/results/experiments.json and .md are written after every sequence, from whatever the store has.
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
from experiment_report import choice, differences, figures, page
from paired_bootstrap import compared, request_of
from quality import RESULTS

from raycl.comparison.grid import GridCell, make_grid
from raycl.comparison.runner import CellFailed, CellJob, CellRunner
from raycl.files import home, write_json, write_text
from raycl.sequence.job import SentJob
from raycl.state.store import Store
from raycl.tasks.orders import resolve_order
from raycl.train.workers import cores

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
        """The cells of some experiments, pairs of order and seed outermost."""
        cells = [cell for letter in letters for cell in (*self.test.get(letter, ()), *self.validation.get(letter, ()))]
        pairs = dict.fromkeys((cell.order, cell.seed) for cell in cells)
        return (cell for pair in pairs for cell in cells if (cell.order, cell.seed) == pair)


def main() -> None:
    """Plan, run, report."""
    chosen = arguments()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    store = Store(chosen.store or str(home() / "store"))
    planned = plan(chosen, store)
    wanted = [cell for cell in planned.of(chosen.only) if cell.order in chosen.orders and cell.seed in chosen.seeds]
    if chosen.plan:
        show(wanted)
        return
    fresh: dict[str, Any] = {}
    if not chosen.report:
        store.check_usable()
        for cell in run(wanted, planned.failures):
            print(f"finished: {name_of(cell)}", flush=True)
            report(planned, fresh)
        if "D" in chosen.only:
            fresh["D"] = dilution(planned.test[DILUTED], read_known()["D"])
        if "G" in chosen.only:
            fresh["G"] = compared(comparison_cells(chosen, store))
    report(planned, fresh)
    print(f"written: {RESULTS / 'experiments.md'}")


def arguments() -> argparse.Namespace:
    """The command line; lists are written with commas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the benchmark")
    parser.add_argument("--only", type=letters, default=list(LETTERS), help=f"of {', '.join(LETTERS)}  [default: all]")
    parser.add_argument("--orders", type=orders, default=ORDERS)
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=SEEDS)
    parser.add_argument("--plan", action="store_true", help="only show what would run")
    parser.add_argument("--report", action="store_true", help="only write the page from what is finished")
    parser.add_argument("--store", help="stage store  [default: raycl's own]")
    parser.add_argument(
        "--comparison", type=Path, help="folder of a comparison whose answers G resamples, with its store"
    )
    return parser.parse_args()


def orders(text: str) -> list[str]:
    """Ids of orders, by id or number. Raises SpecError for an unknown one."""
    return [resolve_order(one)[0] for one in text.split(",")]


def letters(text: str) -> list[str]:
    """Letters of experiments; a wrong one is an argparse error."""
    found = text.split(",")
    if unknown := sorted(set(found) - set(LETTERS)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; allowed: {', '.join(LETTERS)}")
    return found


def plan(chosen: argparse.Namespace, store: Store) -> Planned:
    """Every cell of every experiment, on the usual pairs and those asked for: the page shows all that is finished."""
    pairs = list(dict.fromkeys([*ORDERS, *chosen.orders])), list(dict.fromkeys([*SEEDS, *chosen.seeds]))
    planned = Planned({})
    for letter, experiment in EXPERIMENTS.items():
        entries = arms_of(experiment)
        planned.test[letter] = make_grid(grid_of(entries, *pairs, chosen.data), 0, store)
        if experiment.rates:
            grid = grid_of(entries, *pairs, chosen.data, validation=True)
            planned.validation[letter] = make_grid(grid, 0, store)
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


def name_of(cell: GridCell) -> str:
    """A cell's name, with the rows it is scored on where they are not the test split's."""
    split = cell.job.spec.data.test_split if cell.job else "test"
    return cell.name if split == "test" else f"{cell.name}  ({split})"


def run(cells: list[GridCell], failures: dict[str, str]) -> Iterator[GridCell]:
    """Run what the store lacks, cell by cell; each is yielded when it is finished. One that fails costs no other."""
    runner = CellRunner(cores())
    for number, cell in enumerate(cells):
        if cell.job is None or not cell.missing():
            continue
        job = CellJob(number, SentJob.of(cell.job))
        event = runner.advance(job)
        while not isinstance(event, CellFailed) and not event.finished:
            event = runner.advance(job)
        if isinstance(event, CellFailed):
            failures[cell.name] = event.error
            print(f"failed: {name_of(cell)}: {event.trace or event.error}", flush=True)
        else:
            yield cell


def read_known() -> dict[str, Any]:
    """The last results: what D and G found is kept, the rest is read from the store each time."""
    path = RESULTS / "experiments.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"D": [], "G": []}


def report(planned: Planned, fresh: dict[str, Any]) -> None:
    """Write both files from what is finished; `fresh` is what D and G found in this call."""
    known = read_known() | fresh
    record: dict[str, Any] = {"D": known["D"], "G": known["G"]}
    for letter, experiment in EXPERIMENTS.items():
        cells = planned.test[letter]
        rows = figures(cells)
        record[letter] = {
            "question": experiment.question,
            "arms": experiment.arms,
            "sequences": rows,
            "differences": differences(rows, experiment.against),
            "not run": not_run(cells, planned.failures),
        }
        if experiment.rates and (validated := figures(planned.validation[letter])):
            record[letter] |= {"validation": validated, "choice": choice(rows, validated)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "experiments.json", record)
    write_text(RESULTS / "experiments.md", page(record))


def not_run(cells: list[GridCell], failures: dict[str, str]) -> list[str]:
    """What is not finished, arm by arm; a failed cell with its reason."""
    left: dict[str, list[str]] = {}
    for cell in cells:
        if cell.job is None or cell.missing():
            reason = cell.error or failures.get(cell.name)
            words = f"{cell.order} seed {cell.seed}" + (f" ({reason})" if reason else "")
            left.setdefault(cell.entry.label, []).append(words)
    return [f"{label}: {', '.join(words)}" for label, words in left.items()]


if __name__ == "__main__":
    main()
