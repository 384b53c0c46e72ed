"""Whether reading labels gives the answers of generation: `python benchmarks/answers_alike.py --data DIR`.

Trains a short sequence and answers all its test prompts twice: as raycl scores them, with labels read behind one pass over
each prompt, and token by token. Writes how many answers are alike, and every one that is not with both answers and the end
of its prompt, to benchmarks/results/answers_alike.json and .md; an entry for each method and precision, which stays until
it is measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from answering import Answering, answering
from performance_cell import Figure, conditions

from raycl.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "answers_alike.json"
ORDER = "dbpedia,amazon,yahoo,agnews,imdb,sst2"
SHOWN = 60
"""Characters of a prompt's end that stand beside two answers which differ."""


def main() -> None:
    """Train, answer, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the benchmark")
    parser.add_argument("--method", default="o_lora")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--order", default=ORDER)
    parser.add_argument("--prompts", type=int, default=900, help="test prompts of each task  [default: %(default)s]")
    given = parser.parse_args()
    data = {"source": given.data, "train_examples": 64, "test_examples": 4, "max_source_tokens": 128}
    fields = {"order": given.order, "data": data, "eval": {"batch_size": 32}}
    with (
        tempfile.TemporaryDirectory(prefix="raycl-alike-") as folder,
        answering(given.method, given.precision, Path(folder), fields, given.prompts) as way,
    ):
        entry = compared(way)
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    found[f"{given.method} {given.precision}"] = entry | {"conditions": conditions(Figure(0, given.precision), (0, 0))}
    write_json(FILE, found, indent=1)
    write_text(RESULTS / "answers_alike.md", page(found))


def compared(way: Answering) -> dict[str, Any]:
    """Both ways over all prompts: how long they took, how many answers are alike, and those that are not."""
    begun = time.perf_counter()
    read = way.as_raycl()
    between = time.perf_counter()
    written = way.token_by_token()
    ended = time.perf_counter()
    prompts = [(task.name, example.prompt) for task in way.tasks for example in task.test]
    apart = [
        {"task": task, "prompt": prompt[-SHOWN:], "read": one, "written": other}
        for (task, prompt), one, other in zip(prompts, read, written, strict=True)
        if one != other
    ]
    seconds = {"read": between - begun, "written": ended - between}
    return {"prompts": len(prompts), "alike": len(prompts) - len(apart), "seconds": seconds, "apart": apart}


def page(found: dict[str, Any]) -> str:
    """All entries, and what differs."""
    lines = [
        "# Labels read, and answers written",
        "",
        "`python benchmarks/answers_alike.py`: test prompts of a short sequence, answered as raycl scores them (labels",
        "read behind one pass over each prompt) and token by token. The packaged model, prompts of at most 128 tokens.",
        "",
        "| method, precision | prompts | alike | seconds, read | seconds, written | made on |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, one in found.items():
        held, seconds = one["conditions"], one["seconds"]
        lines.append(
            f"| {name} | {one['prompts']:,} | {one['alike']:,} | {seconds['read']:.0f} | {seconds['written']:.0f} "
            f"| {held['hardware']}, torch {held['torch']} |"
        )
    for name, one in found.items():
        if one["apart"]:
            lines += ["", f"## {name}: answers that differ", "", "| task | prompt ends in | read | written |"]
            lines += ["| --- | --- | --- | --- |"]
            lines += [
                "| " + " | ".join(_cell(row[key]) for key in ("task", "prompt", "read", "written")) + " |"
                for row in one["apart"]
            ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
