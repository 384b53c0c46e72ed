"""Change raycl in small ways and see whether the tests notice: `make mutants`.

    python benchmarks/mutants.py                  # the fixed choice; goes on where it was stopped; writes results/mutants.*
    python benchmarks/mutants.py --some 12        # a random dozen that fell before, with its seed; writes no results
    python benchmarks/mutants.py --only slao      # those of the choice whose name holds the text, run anew

Each mutant (`mutation.py`) is put into a private copy of the tree under build/mutants/ and meets the quick tests nearest to
it, those that call the changed function, in a process forked from one that has imported the large libraries
(`mutant_tests.py`). Which test calls what is found out once for each test file, and again when that file changes. `--some`
asks only the test that killed the mutant last, as results/mutants.json says, so that it takes a minute; it ends with exit
code 1 if one survives.

The choice is by the hashes of the mutants' names, so that other code moves only what belongs to it, and all marks of keys.
mutants_reviewed.json holds, in `equivalent`, the survivors that change nothing that counts, with the reason; and, in
`always`, how the names of those start that passed unnoticed once: they are part of every choice. (mutmut changes function
bodies only, no defaults of fields, no marks and no constants, and it draws no sample.)
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutant_tests import ROOT, WORK, Chosen, Done, Pool, Tests, digest, run_tests, survey
from mutation import Mutant, mutants_of

REVIEWED = ROOT / "benchmarks" / "mutants_reviewed.json"
RESULTS = ROOT / "benchmarks" / "results" / "mutants"
SEED = "raycl"
ROOMS = {
    "keys": ("fields.py spec.py sections.py sequence/plan.py state/keys.py comparison/grid.py", 36),
    "store": ("state/*.py", 44),
    "loop": (
        "train/loop.py train/stage.py train/[be]*.py train/losses.py train/optimizer.py train/passes.py train/selection.py "
        "train/checkpoints.py",
        50,
    ),
    "generation and scoring": (
        "train/generation.py train/greedy.py train/decoding.py tasks/scoring.py tasks/sampling.py analysis/matrix.py",
        32,
    ),
    "adapters": ("adapters/*.py", 34),
    "methods": ("methods/*.py methods/common/*.py", 56),
    "models": ("models/*.py", 16),
}
"""Room -> the files below raycl/ and how many mutants of them are chosen."""
LIBRARIES = (
    "torch transformers peft deepspeed pydantic numpy pandas scipy.stats safetensors.torch fsspec tokenizers datasets "
    "pytest hypothesis huggingface_hub filelock yaml jinja2 rouge_score.rouge_scorer "
    "transformers.models.llama.modeling_llama transformers.models.t5.modeling_t5 transformers.generation.utils"
)
FIRST = 25
"""So many tests are asked before the files of the others are read."""
NEAR_S = 40.0
"""How many seconds of tests a mutant meets, by their durations when they were surveyed."""


def choose(always: list[str]) -> dict[str, list[Mutant]]:
    """Room -> its chosen mutants; a file belongs to the first room that names it."""
    taken: set[Path] = set()
    chosen = {}
    for room, (patterns, count) in ROOMS.items():
        files = {path for pattern in patterns.split() for path in (ROOT / "raycl").glob(pattern)} - taken
        taken |= files
        sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(files)}
        every = [one for file, source in sources.items() for one in mutants_of(file, source)]
        ranked = sorted(every, key=lambda one: digest(f"{SEED} {one.name}".encode()))
        whole = (one for one in ranked if one.apply(sources[one.file]) is not None)
        drawn = [one for one, _ in zip(whole, range(count), strict=False)]
        once = (one for one in every if one.kind == "mark" or one.name.startswith(tuple(always)))
        once = (one for one in once if one.apply(sources[one.file]) is not None)
        chosen[room] = [*drawn, *(one for one in once if one not in drawn)]
    return chosen


def nearest(mutant: Mutant, tests: Tests, killer: str) -> list[str]:
    """The tests that call the changed function (for what is no function, the whole file): the last killer, the tests that
    mirror the file, and those that call little else, quick ones first."""
    exact = f"{mutant.file}::{mutant.scope}"
    callers = [name for name, one in tests.items() if exact in one["calls"]]
    if not callers:
        callers = [name for name, one in tests.items() if any(c.startswith(f"{mutant.file}::") for c in one["calls"])]
    if not callers:  # a file of constants
        callers = [name for name in tests if name.startswith(f"tests/{Path(mutant.file).parts[1]}/")]
    mirrored = [name for name in tests if name.partition("::")[0].endswith(f"{Path(mutant.file).stem}.py")]
    chosen: list[str] = []
    total = 0.0

    def rank(name: str) -> tuple[bool, bool, float, float]:
        calls = tests[name]["calls"]
        share = sum(call.startswith(f"{mutant.file}::") for call in calls) / max(1, len(calls))
        return name != killer, name not in mirrored, -round(share, 1), tests[name]["s"]

    for name in sorted({*callers, *mirrored} | ({killer} & tests.keys()), key=rank):
        if (total := total + tests[name]["s"]) < NEAR_S or not chosen:
            chosen.append(name)
    return chosen


def remembered(mutant: Mutant, killer: str) -> list[str]:
    """Without a survey: the test that killed it last, or the files that mirror its own."""
    if (ROOT / killer.partition("::")[0]).is_file():
        return [killer]
    return [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob(f"test*_{Path(mutant.file).stem}.py")]


def meet(tree: Path, mutant: Mutant | None, names: list[str]) -> int:
    """Put the mutant into the tree and run the tests until one fails; in a child."""
    (tree / "failed.txt").unlink(missing_ok=True)
    if mutant is not None:
        changed = mutant.apply((ROOT / mutant.file).read_text(encoding="utf-8"))
        (tree / mutant.file).write_text(changed or "", encoding="utf-8")
    sys.argv = ["pytest"]
    code = 5
    # Most mutants fall to the first few tests: the files of the others need not be read for them.
    for part in (names[:FIRST], names[FIRST:]):
        if part and code in (0, 5):
            plugin = Chosen(part)
            ended = run_tests(tree, ["-x", *plugin.files], plugin)
            code = code if ended == 5 else ended
    return code


def run(mutants: list[Mutant], pool: Pool, tests: Tests, results: dict[str, Any], save: Callable[[], None]) -> None:
    """Let every mutant meet its tests, without a survey the remembered ones; `results` gets each one's fate."""

    def keep(mutant: Mutant, names: list[str]) -> Done:
        begun = time.monotonic()

        def done(tree: Path, code: int | None) -> None:
            shutil.copyfile(ROOT / mutant.file, tree / mutant.file)
            failed = tree / "failed.txt"
            by = (
                failed.read_text()
                if failed.is_file()
                else "time limit"
                if code is None
                else f"pytest ended with {code}"
            )
            # pytest ends with 4 where raycl cannot be imported any more; and where a named test is not there, which kills
            # nothing.
            gone = code == 4 and "ERROR: not found" in tree.with_suffix(".log").read_text(errors="replace")
            fate = {0: {"fate": "survived"}, 5: {"fate": "no test"}}.get(5 if gone else -1 if code is None else code)
            results[mutant.name] = fate or {"fate": "killed", "by": by}
            results[mutant.name] |= {"tests": len(names), "s": round(time.monotonic() - begun, 1)}
            print(f"{results[mutant.name]['fate']:9} {mutant.line:4} {mutant.name}", flush=True)
            save()

        return done

    for mutant in mutants:
        killer = results.get(mutant.name, {}).get("by", "?")
        names = nearest(mutant, tests, killer) if tests else remembered(mutant, killer)
        limit = 60 + 6 * sum(tests[name]["s"] for name in names) if tests else 120
        pool.start(lambda tree, m=mutant, n=names: meet(tree, m, n), limit, keep(mutant, names))
    pool.wait(all_of_them=True)


def check_tools(pool: Pool) -> None:
    """End where an unchanged tree does not pass: then every mutant would count as killed."""
    codes: list[int | None] = []
    pool.start(lambda tree: meet(tree, None, ["tests/test_spec.py"]), 300, lambda tree, code: codes.append(code))
    pool.wait(all_of_them=True)
    if codes != [0]:
        sys.exit(f"error: the tests of an unchanged tree end with {codes[0]}; see {WORK}/tree-*.log")


def report(chosen: dict[str, list[Mutant]], results: dict[str, Any], reviewed: dict[str, str]) -> str:
    """The page: counts by room, what survived, and what cannot be killed with the reason."""
    lines = [
        "# Mutants",
        "",
        "`make mutants` changes raycl in small ways, one at a time, and runs the quick tests nearest to",
    ]
    lines += ["each change. Equivalent: reviewed by a person, changes nothing that a caller can see.", ""]
    lines += [
        "| room | mutants | killed | survived | equivalent | killed of the rest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    total = [0, 0, 0, 0]
    for room, mutants in [*chosen.items(), ("all", [])]:
        fates = [_fate(one, results, reviewed) for one in mutants]
        counts = [len(fates), fates.count("killed"), len(fates) - fates.count("killed") - fates.count("equivalent")]
        counts.append(fates.count("equivalent"))
        total = [a + b for a, b in zip(total, counts, strict=True)]
        shown = total if room == "all" else counts
        rest = max(1, shown[0] - shown[3])
        lines.append(f"| {room} | {' | '.join(map(str, shown))} | {100 * shown[1] / rest:.1f} % |")
    for title, wanted in (("Survived", ("survived", "no test", "not run")), ("Equivalent", ("equivalent",))):
        lines += ["", f"## {title}", ""]
        listed = [one for mutants in chosen.values() for one in mutants if _fate(one, results, reviewed) in wanted]
        lines += [] if listed else ["None."]
        for one in listed:
            lines.append(
                f"- line {one.line}: `{one.name}`" + (f": {reviewed[one.name]}" if one.name in reviewed else "")
            )
    return "\n".join(lines) + "\n"


def _fate(one: Mutant, results: dict[str, Any], reviewed: dict[str, str]) -> str:
    return "equivalent" if one.name in reviewed else results.get(one.name, {"fate": "not run"})["fate"]


def main() -> None:
    """Read the options, run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--some", type=int, help="so many at random")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of --some")
    parser.add_argument("--only", help="those whose name holds this text")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in LIBRARIES.split():
        importlib.import_module(library)
    listed, path = json.loads(REVIEWED.read_text()), WORK / "results.json"
    chosen, reviewed = choose([f"raycl/{start}" for start in listed["always"]]), listed["equivalent"]
    results = read_results(path, options.some)
    every = [one for mutants in chosen.values() for one in mutants]
    todo = [one for one in every if results.get(one.name, {}).get("fate") != "killed" and one.name not in reviewed]
    todo.sort(key=lambda one: results.get(one.name, {"fate": "not run"})["fate"] != "not run")  # then what survived
    if options.only:
        todo = [one for one in every if options.only in one.name]
    if options.some:
        print(f"seed {options.seed}")
        known = (one for one in every if one.name not in reviewed)
        fell = [one for one in known if "::" in results.get(one.name, {}).get("by", "")]  # by a test, no time limit
        todo = random.Random(options.seed).sample(fell, options.some)
    pool = Pool(options.jobs)
    check_tools(pool)
    run(
        todo,
        pool,
        {} if options.some else survey(pool),
        results,
        lambda: None if options.some else write_json(path, results),
    )
    if not options.some:
        page = report(chosen, results, reviewed)
        RESULTS.with_suffix(".md").write_text(page, encoding="utf-8")
        fates = {one.name: results.get(one.name, {"fate": "not run"}) for one in every if one.name not in reviewed}
        write_json(RESULTS.with_suffix(".json"), fates)
    survived = [one for one in todo if results[one.name]["fate"] != "killed"]
    print(f"{len(todo) - len(survived)} of {len(todo)} killed")
    sys.exit(bool(options.some and survived))


def read_results(path: Path, only_hints: bool) -> dict[str, Any]:
    """What an interrupted run left, or, of the last one that was committed, which test killed which mutant."""
    if path.is_file() and not only_hints:
        return json.loads(path.read_text())
    last = RESULTS.with_suffix(".json")
    fates = json.loads(last.read_text()) if last.is_file() else {}
    return {name: {"fate": "not run", "by": one["by"]} for name, one in fates.items() if "by" in one}


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all, in a fixed order."""
    path.with_suffix(".new").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
