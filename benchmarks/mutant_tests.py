"""Tests in forked children, on private copies of the tree: what `mutants.py` runs, and which test calls what."""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutants"
NEAR = (
    "adapters",
    "analysis",
    "cli/test_layers.py",
    "comparison/test_grid.py",
    "methods",
    "models",
    "sequence",
    "state",
    "tasks",
    "train",
)
"""Below tests/: what is near enough, beside the files at the top."""
LEFT_OUT = ("ray", "commands", "pair")
"""Groups of tests that work through other processes, whose calls are not seen."""
Done = Callable[[Path, int | None], None]
"""Hears the tree and the exit code of a child; none: it ran past its limit."""
Tests = dict[str, dict[str, Any]]
"""Test id -> its seconds `s`, and the functions of raycl that it `calls`."""


def digest(data: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(data).hexdigest()


def copy_tree(slot: int) -> Path:
    """A private copy of the tree, compiled so that a changed file is recompiled by its content."""
    tree = WORK / f"tree-{slot}"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}
    for old in [path for path in tree.rglob("*.py") if str(path.relative_to(tree)) not in names]:
        old.unlink()
    for name in names:
        source, copy = ROOT / name, tree / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    compileall.compile_dir(tree / "raycl", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return tree


class Pool:
    """Forked children, one for each tree."""

    def __init__(self, jobs: int) -> None:
        self.free = [copy_tree(slot) for slot in range(jobs)]
        self.running: dict[int, tuple[Path, float, Done]] = {}

    def start(self, work: Callable[[Path], int], limit_s: float, done: Done) -> None:
        """Run `work` in a child as soon as a tree is free; `done` hears its exit code, none if it ran past the limit."""
        while not self.free:
            self.wait()
        tree = self.free.pop()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.chdir(tree)
            log = os.open(tree.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 70
            try:
                code = work(tree)
            finally:
                sys.stdout.flush()
                os._exit(code)
        self.running[pid] = (tree, time.monotonic() + limit_s, done)

    def wait(self, all_of_them: bool = False) -> None:
        """Until one child has ended, or all."""
        while self.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            late = [one for one, (_, end, _) in self.running.items() if time.monotonic() > end]
            if pid not in self.running and not late:
                time.sleep(0.05)
                continue
            code = os.waitstatus_to_exitcode(status) if pid in self.running else None
            ended = pid if pid in self.running else late[0]
            _end_group(ended)  # what its tests may have left running, too
            if code is None:
                os.waitpid(ended, 0)
            tree, _, done = self.running.pop(ended)
            done(tree, code)
            self.free.append(tree)
            if not all_of_them:
                return


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run_tests(tree: Path, files: list[str], plugin: object) -> int:
    """pytest in this process on the tree's files, without what is slow or repeats."""
    import pytest

    sys.path[:] = [
        str(tree),
        *(place for place in sys.path if Path(place).resolve() not in (ROOT, ROOT / "benchmarks")),
    ]
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--durations=0", "-m", "not slow and not thorough"]
    return int(pytest.main([*options, *files], plugins=[plugin]))


class Survey:
    """Notes which functions of raycl each passing test calls, those that its fixtures called included."""

    def __init__(self, tree: Path) -> None:
        self.prefix = f"{tree}/"
        self.calls: set[str] = set()
        self.of_fixture: dict[str, set[str]] = {}
        self.found: Tests = {}
        self.names: dict[Any, str | None] = {}

    def trace(self, frame: Any, event: str, argument: Any) -> None:
        """Called at the start of every Python function."""
        code = frame.f_code
        if code not in self.names:
            inside = code.co_filename.startswith(f"{self.prefix}raycl/")
            parts = [part for part in code.co_qualname.split(".") if not part.startswith("<")]
            self.names[code] = f"{code.co_filename.removeprefix(self.prefix)}::{'.'.join(parts)}" if inside else None
        if (name := self.names[code]) is not None:
            self.calls.add(name)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what works through other processes, whose calls are not seen."""
        from tests.kit.groups import group_of

        items[:] = [item for item in items if group_of(item.nodeid) not in LEFT_OUT]

    def wrap_fixture(self, fixturedef: Any) -> Any:
        """Around the making of a fixture."""
        outer, self.calls = self.calls, set()
        result = yield
        self.of_fixture.setdefault(fixturedef.argname, set()).update(self.calls)
        self.calls |= outer
        return result

    def wrap_test(self, item: Any) -> Any:
        """Around a test with all that belongs to it."""
        self.calls = set()
        begun = time.perf_counter()
        sys.settrace(self.trace)
        result = yield
        sys.settrace(None)
        fixtures = [self.of_fixture.get(name, set()) for name in item.fixturenames]
        calls = sorted(self.calls.union(*fixtures))
        self.found[item.nodeid] = {"s": time.perf_counter() - begun, "calls": calls, "passed": True}
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Forget what does not pass."""
        if report.outcome != "passed":
            self.found.setdefault(report.nodeid, {})["passed"] = False


def survey(pool: Pool) -> Tests:
    """Test id -> its duration in s and what it calls; gathered anew for the test files that changed."""
    path = WORK / "survey.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    places = [*(ROOT / "tests" / name for name in NEAR), ROOT / "tests/test_spec.py", ROOT / "tests/test_presets.py"]
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("test_*.py")))
    wanted = {str(file.relative_to(ROOT)): digest(file.read_bytes()) for file in files}
    fresh = {file: known[file] for file, digest in wanted.items() if known.get(file, {}).get("digest") == digest}

    def keep(file: str) -> Done:
        def done(tree: Path, code: int | None) -> None:
            result = tree.with_suffix(".json")
            tests = json.loads(result.read_text()) if code in (0, 1, 5) and result.is_file() else {}
            failed = [name for name, one in tests.items() if not one["passed"]]
            print(f"{file}: {len(tests)} tests" + (f", NOT PASSING: {', '.join(failed)}" if failed else ""), flush=True)
            passed = {name: one for name, one in tests.items() if one["passed"] and "calls" in one}
            fresh[file] = {"digest": wanted[file], "tests": passed}
            path.write_text(json.dumps(fresh))

        return done

    for file in [file for file in wanted if file not in fresh]:
        pool.start(lambda tree, file=file: _survey_file(tree, file), 900, keep(file))
    pool.wait(all_of_them=True)
    return {name: one for entry in fresh.values() for name, one in entry["tests"].items()}


def _survey_file(tree: Path, file: str) -> int:
    import pytest

    class Plugin(Survey):
        pytest_fixture_setup = pytest.hookimpl(wrapper=True)(Survey.wrap_fixture)

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
            return (yield from self.wrap_test(item))

    noted = Plugin(tree)
    code = run_tests(tree, [file], noted)
    tree.with_suffix(".json").write_text(json.dumps(noted.found))
    return code


class Chosen:
    """Runs the given tests, or whole files, in the order of their files, and notes which one fails."""

    def __init__(self, names: list[str]) -> None:
        self.names = set(names)
        self.files = list(dict.fromkeys(name.partition("::")[0] for name in names))

    def pytest_collection_finish(self, session: Any) -> None:
        """After all other orders."""
        kept = [item for item in session.items if self.names & {item.nodeid, item.nodeid.partition("::")[0]}]
        session.items[:] = sorted(kept, key=lambda item: self.files.index(item.nodeid.partition("::")[0]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Say which test failed, for the parent; and stop there."""
        if report.failed:
            Path("failed.txt").write_text(report.nodeid)
