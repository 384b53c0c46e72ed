"""Every method on real tasks, same model and budget: `python benchmarks/quality.py --data DIR`.

For each variant the learning rate is chosen from a small grid, the same for all variants that train the same kind of
weights, by the score on train rows that training does not use, after the first two tasks of the order. Test data never
takes part in a choice. Then the whole order runs with it. All of it goes through the stage store, so an interrupted
benchmark continues, and what the choice trained is not trained again. The table is written from whatever is finished:
benchmarks/results/quality.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from quality_report import write_report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GRIDS = {"lora": [3e-4, 1e-3, 3e-3], "full": [3e-5, 1e-4, 3e-4], "prompt": [0.03, 0.1, 0.3]}
"""Learning rates by what a variant trains; the middle one is run first."""
SHARED = yaml.safe_load((ROOT / "benchmarks" / "comparison.yaml").read_text(encoding="utf-8"))
"""The budget, as `raycl compare` takes it, so that both find each other's stages."""
BRANCH = SHARED.pop("method")
VALIDATION = 50
"""Validation examples per task."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    method: dict[str, Any]
    kind: str = "lora"
    data: dict[str, Any] = field(default_factory=dict)
    like: str | None = None
    """A variant that trains the same weights in the same way: its learning rate is taken, and none is chosen."""

    @property
    def settings(self) -> dict[str, Any]:
        """Its hyper-parameters, with the common branch shape where it has a branch."""
        return (BRANCH if self.kind == "lora" else {}) | self.method


VARIANTS = {
    "sin_lora": Variant({"name": "sin_lora"}),
    "inc_lora": Variant({"name": "inc_lora"}),
    "o_lora": Variant({"name": "o_lora"}),
    "inf_lora": Variant({"name": "inf_lora"}),
    "gain_lora over o_lora": Variant({"name": "gain_lora", "over": "o_lora"}),
    "gain_lora over inf_lora": Variant({"name": "gain_lora", "over": "inf_lora"}),
    "am_lora nr": Variant({"name": "am_lora", "variant": "nr", "l1": 0.0}),
    "am_lora nr + l1": Variant({"name": "am_lora", "variant": "nr", "l1": 1e-5}),
    "am_lora ar": Variant({"name": "am_lora", "variant": "ar", "l1": 0.0}),
    "am_lora ar + l1": Variant({"name": "am_lora", "variant": "ar", "l1": 1e-5}),
    "slao": Variant({"name": "slao", "alpha": 16.0}),
    "merging magmax": Variant({"name": "merging", "rule": "magmax"}),
    "merging ties": Variant({"name": "merging", "rule": "ties"}),
    "merging mean": Variant({"name": "merging", "rule": "mean"}),
    "ewc": Variant({"name": "ewc", "fisher_examples": 100}),
    "ewc history": Variant({"name": "ewc", "importance": "history"}),
    "lwf": Variant({"name": "lwf"}),
    "migu over sin_lora": Variant({"name": "migu", "over": "sin_lora"}),
    "c_lora": Variant({"name": "c_lora"}),
    "lorac": Variant({"name": "lorac"}),
    "lorac ipc": Variant({"name": "lorac", "ipc": True}),
    "tree_lora": Variant({"name": "tree_lora"}),
    "l2p": Variant({"name": "l2p"}, "prompt"),
    "lfpt5, 50 vectors": Variant({"name": "lfpt5", "length": 50}, "prompt"),
    "prog_prompt": Variant({"name": "prog_prompt"}, "prompt"),
    "sapt_lora": Variant({"name": "sapt_lora"}),
    "replay": Variant({"name": "replay"}),
    "per_task": Variant({"name": "per_task"}),
    "route_lora": Variant({"name": "route_lora"}, like="per_task"),
    "route_lora text": Variant({"name": "route_lora", "region": "text"}, like="per_task"),
    "mtl": Variant({"name": "mtl"}),
    "seq_ft": Variant({"name": "seq_ft"}, "full"),
    "ewc full": Variant({"name": "ewc", "trains": "full", "fisher_examples": 50}, "full"),
}
SETTINGS = {name: variant.settings for name, variant in VARIANTS.items()}


def main() -> None:
    """Run what is missing, cell by cell, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the benchmark")
    parser.add_argument("--order", default="1")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--only", nargs="*", default=None, help="variants to run  [default: all]")
    parser.add_argument("--report", action="store_true", help="only write the table from the finished cells")
    parser.add_argument("--no-choice", action="store_true", help="the middle learning rate only")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    write_report(RESULTS, SETTINGS)
    if arguments.report:
        return
    for name in arguments.only if arguments.only is not None else VARIANTS:
        for seed in arguments.seeds:
            try:
                run_variant(name, arguments.order, seed, arguments.data, not arguments.no_choice)
            except Exception:  # one bad variant must not cost the others; it is missing from the table
                traceback.print_exc()
            write_report(RESULTS, SETTINGS)


def run_variant(name: str, order: str, seed: int, data: str, choose: bool) -> None:
    """Choose the learning rate (at seed 0, for all seeds), run the order, and keep the figures."""
    print(f"== {name}, order {order}, seed {seed}", flush=True)
    target = _target(name, order, seed)
    chosen, tried = _choice(name, order, data, choose)
    known = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    if (known.get("lr"), known.get("method")) != (chosen, VARIANTS[name].settings):
        known = _cell(name, order, seed, chosen, data)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(known | {"tried": tried}, indent=1) + "\n", encoding="utf-8")


def _target(name: str, order: str, seed: int) -> Path:
    """The file of a cell."""
    return RESULTS / "quality" / f"{name.replace(' ', '-')}.order-{order}.seed-{seed}.json"


def _choice(name: str, order: str, data: str, choose: bool) -> tuple[float, dict[str, float]]:
    """The learning rate with the best validation AP after two tasks; of equal ones the lowest.

    Of a variant that is like another one, that one's: as chosen on this order, or else on order 1.
    """
    like = VARIANTS[name].like
    if like:
        found = [_target(like, one, 0) for one in (order, "1") if _target(like, one, 0).is_file()]
        if not found:
            raise FileNotFoundError(
                f"{name} takes the learning rate of {like}, which was not run on order {order} or 1"
            )
        return json.loads(found[0].read_text(encoding="utf-8"))["lr"], {}
    grid = GRIDS[VARIANTS[name].kind]
    if not choose:
        return grid[1], {}
    from raycl.tasks.orders import resolve_order

    first_two = ",".join(resolve_order(order)[1][:2])
    tried = {}
    for lr in grid:
        layer = {"data": {"test_split": "validation", "test_examples": VALIDATION}}
        tried[str(lr)] = _sequence(name, first_two, 0, lr, data, layer).matrix.ap()
    return max(grid, key=lambda lr: (tried[str(lr)], -lr)), tried


def _sequence(name: str, order: str, seed: int, lr: float, data: str, *layers: dict[str, Any]) -> Any:
    """One sequence in this process; what the store holds is not trained again."""
    from raycl.sequence.driver import Options, run_sequence
    from raycl.sequence.resolve import resolve

    variant = VARIANTS[name]
    said = {"order": order, "method": variant.settings, "seed": seed, "workers": 0}
    said |= {"data": {"source": data}, "train": {"lr": lr}}
    spec = resolve("laptop", [SHARED, said, {"data": variant.data}, *layers], gpus=0)
    return run_sequence(spec, Options(experiment="raycl-quality"))


def _cell(name: str, order: str, seed: int, lr: float, data: str) -> dict[str, Any]:
    """Run an order and take down its figures."""
    from raycl.files import finite

    result = _sequence(name, order, seed, lr, data)
    summary = json.loads((result.outputs["summary.json"]).read_text(encoding="utf-8"))
    manifests = list(_manifests(result))
    routing = result.outputs.get("routing.json")
    return {
        **({"routing": json.loads(routing.read_text(encoding="utf-8"))} if routing else {}),
        "variant": name,
        "order": order,
        "seed": seed,
        "lr": lr,
        "method": VARIANTS[name].settings,
        "measures": {measure: summary.get(measure) for measure in ("AP", "FT", "BWT", "LA")},
        "matrix": result.matrix.to_json(),
        "stages": [
            {
                "task": manifest.task,
                "seconds": manifest.runtime["seconds"],
                "steps": manifest.steps[-1].steps,
                "trainable_parameters": manifest.runtime.get("trainable_parameters"),
                "bytes": sum(record.bytes for record in manifest.files.values()),
                "gauges": finite(manifest.end.gauges),
                "commit": (manifest.environment.get("git") or {}).get("commit"),
                "created": manifest.created,
            }
            for manifest in manifests
        ],
    }


def _manifests(result: Any) -> Iterator[Any]:
    from raycl.files import home
    from raycl.state.store import Store

    store = Store(str(home() / "store"))
    yield from (store.manifest(stage.key) for stage in result.plan.stages)


if __name__ == "__main__":
    main()
