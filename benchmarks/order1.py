"""Six method variants on one order of real tasks, same model, seed and budget: `python benchmarks/order1.py --data DIR`.

Each variant is one `jobs/sequence.py` command. Finished stages come from the store, so an interrupted run continues, and
the report is written from whatever variants are finished: benchmarks/results/order-<order>-seed<seed>.md and .json. What
each command itself leaves (plots, spec, data records) is in benchmarks/results/runs/, which git does not keep.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
VARIANTS = {
    "sin_lora": ["--method", "sin_lora"],
    "inc_lora": ["--method", "inc_lora"],
    "o_lora": ["--method", "o_lora"],
    "inf_lora": ["--method", "inf_lora"],
    "gain_lora over o_lora": ["--method", "gain_lora", "--set", "method.over=o_lora"],
    "gain_lora over inf_lora": ["--method", "gain_lora", "--set", "method.over=inf_lora"],
}
BUDGET = [
    "data.train_examples=400",
    "data.test_examples=100",
    "data.max_source_tokens=128",
    "train.lr=5e-4",
    "train.batch_size=8",
    "train.epochs=1",
    "model.precision=bf16",
    "eval.forward=true",
    "method.rank=8",
    "method.alpha=32",
]


def command(order: str, data: str, seed: int, variant: list[str], output: str) -> list[str]:
    """The command line of one variant, as a user would type it."""
    sets = [word for item in BUDGET for word in ("--set", item)]
    start = ["python", "jobs/sequence.py", "--order", order, "--data", data, "--preset", "laptop", "--seed", str(seed)]
    return [*start, *variant, *sets, "--output", output]


def run(words: list[str]) -> None:
    """Run one command with this interpreter."""
    subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True)


def report(order: str, seed: int, shown: dict[str, list[str]]) -> str:
    """Markdown: one table of measures, then every accuracy matrix, then the commands."""
    done = {name: words for name, words in shown.items() if (_folder(order, seed, name) / "summary.json").is_file()}
    summaries = {name: _summary(order, seed, name) for name in done}
    lines = [
        f"# Order {order}, seed {seed}: {len(done)} of {len(shown)} variants",
        "",
        f"Measured on {date.today().isoformat()}, {_machine()}. Packaged 135M model, real benchmark data, one seed: with",
        "100 test examples a task, differences of about 3 points are noise. Read whole matrices.",
        "",
        "| method | AP | FT | BWT | FWT |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {' | '.join(_cell(s[m]) for m in ('AP', 'FT', 'BWT', 'FWT'))} |"
            for name, s in summaries.items()
        ),
    ]
    for name in done:
        matrix = (_folder(order, seed, name) / "matrix.md").read_text(encoding="utf-8").strip()
        lines += ["", f"## {name}", "", matrix]
    lines += ["", "## Commands", "", "```sh", *(shlex.join(words) for words in done.values()), "```", ""]
    return "\n".join(lines)


def numbers(order: str, seed: int) -> dict[str, Any]:
    """The accuracy matrix and the stage keys of every finished variant."""
    found = {name: _folder(order, seed, name) for name in VARIANTS}
    return {
        name: {
            "matrix": json.loads((folder / "matrix.json").read_text(encoding="utf-8")),
            "stage_keys": _summary(order, seed, name)["stage_keys"],
        }
        for name, folder in found.items()
        if (folder / "summary.json").is_file()
    }


def _folder(order: str, seed: int, name: str) -> Path:
    return RESULTS / "runs" / f"order-{order}-seed{seed}" / name.replace(" ", "-")


def _summary(order: str, seed: int, name: str) -> dict[str, Any]:
    return json.loads((_folder(order, seed, name) / "summary.json").read_text(encoding="utf-8"))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _machine() -> str:
    import os

    return f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"


def main() -> None:
    """Run what is missing and write the report after every variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the benchmark")
    parser.add_argument("--order", default="1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="variants to run")
    arguments = parser.parse_args()
    order, seed = arguments.order, arguments.seed
    real, shown = {}, {}
    for name, variant in VARIANTS.items():
        folder = _folder(order, seed, name)
        real[name] = command(order, arguments.data, seed, variant, str(folder))
        shown[name] = command(order, "DIR", seed, variant, str(folder.relative_to(ROOT)))
    for name in arguments.only:
        print(f"== {name}", flush=True)
        run(real[name])
        target = RESULTS / f"order-{order}-seed{seed}.md"
        target.write_text(report(order, seed, shown), encoding="utf-8")
        target.with_suffix(".json").write_text(json.dumps(numbers(order, seed), indent=1) + "\n", encoding="utf-8")
        print(f"written: {target.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
