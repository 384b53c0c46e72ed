"""Real Ray worker groups: one for all stages, and the same results however often processes are killed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raycl.state.store import Store
from tests.kit.commands import SECONDS, Commands, Running
from tests.kit.runs import MakeFlags, assert_same_part, digests, pauses

pytestmark = pytest.mark.slow
LONG = {"train__epochs": [10, 150], "train__log_every": 10, "eval__forward": "false"}
"""40 steps, then 600: seconds enough to be killed in the middle of."""
QUARTER = "stage 2/2 snippets: step 150/600"
"""What is printed early in the long stage."""


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder of its own for a Ray session, with a path short enough for sockets."""
    folder = tempfile.mkdtemp(prefix="rc", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def started(commands: Commands, ray_folder: str) -> Iterator[Callable[[list[str]], Running]]:
    """Starts commands on a Ray session of their own; whatever processes they leave are ended by id."""
    running: list[Running] = []

    def start(arguments: list[str]) -> Running:
        running.append(commands.start(arguments, RAY_TMPDIR=ray_folder, RAY_ADDRESS=""))
        return running[-1]

    yield start
    left = [child for one in running for child in children(one)]
    for one in running:
        one.process.kill()
    end(left)


def children(running: Running) -> list[psutil.Process]:
    """All processes below a command."""
    try:
        return psutil.Process(running.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(condition: Callable[[], object], running: Running) -> object:
    """Poll until a condition gives something true; fails if the command ends first."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert running.process.is_alive(), (running.folder / "err").read_text()
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def shows(running: Running, text: str) -> Callable[[], bool]:
    """Whether a command has printed something."""
    path = running.folder / "out"
    return lambda: path.is_file() and text in path.read_text()


def train_workers(running: Running) -> list[psutil.Process]:
    """The processes that train."""
    found = []
    for child in children(running):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of two long stages, run in one process without Ray's workers."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    done = commands.run(flags(store, "gain_inf", "llama", "roget,snippets", **LONG))
    assert done.code == 0, done.err
    return store


def test_fifteen_stages_run_in_one_worker_group(
    started: Callable[[list[str]], Running], flags: MakeFlags, fifteen: Path, tmp_path: Path
) -> None:
    """One worker process trains all stages, apart from the driver, and the next stage starts within 2 s."""
    settings = {"data__source": fifteen, "eval__forward": "false", "workers": 1}
    running = started(flags(tmp_path / "store", "gain_o", "llama", "4", **settings))
    done = running.wait()
    assert done.code == 0, done.err
    store = Store(str(tmp_path / "store"))
    runtimes = [store.manifest(key).runtime for key in store.stage_keys()]
    assert len(runtimes) == 15
    assert {runtime["workers"] for runtime in runtimes} == {1}
    (process,) = {runtime["process"] for runtime in runtimes}
    assert process != running.process.pid
    found = pauses(done.events)
    assert len(found) == 14
    assert max(found) < 2
    assert store.verify() == []


def test_a_killed_worker_is_replaced_and_nothing_changes(
    started: Callable[[list[str]], Running], flags: MakeFlags, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL of the worker in the middle of stage 2: the same command goes on by itself and ends with the same bytes."""
    running = started(flags(tmp_path / "store", "gain_inf", "llama", "roget,snippets", workers=1, **LONG))
    wait_for(shows(running, QUARTER), running)
    (worker,) = train_workers(running)
    worker.send_signal(signal.SIGKILL)
    done = running.wait()
    assert done.code == 0, done.err
    assert digests(tmp_path / "store") == digests(undisturbed)
    starts = [event["stage"] for event in done.events if event["event"] == "stage_start"]
    assert starts == [1, 2, 2]
    store = Store(str(tmp_path / "store"))
    assert len({store.manifest(key).runtime["process"] for key in store.stage_keys()}) == 2


def test_a_killed_driver_takes_its_workers_along_and_the_rerun_ends_with_two_workers(
    started: Callable[[list[str]], Running], flags: MakeFlags, tmp_path: Path
) -> None:
    """Two real workers, SIGKILL of the driver in stage 2: no worker stays; the same command then runs only the rest."""
    settings = LONG | {"workers": 2, "train__lr": 1e-3}
    arguments = flags(tmp_path / "store", "gain_inf", "llama", "roget,snippets", **settings)
    running = started(arguments)
    wait_for(shows(running, QUARTER), running)
    below, workers = children(running), train_workers(running)
    assert len(workers) == 2
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.join()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    end(below)  # Ray's own agents follow later by themselves
    first = digests(tmp_path / "store")
    assert len(first) == 1
    done = started(arguments).wait()
    assert done.code == 0, done.err
    assert [event["stage"] for event in done.events if event["event"] == "stage_start"] == [2]
    assert first.items() <= digests(tmp_path / "store").items()
    store = Store(str(tmp_path / "store"))
    assert {store.manifest(key).runtime["workers"] for key in store.stage_keys()} == {2}
    assert_close_to_one_worker(flags, started, store, tmp_path)


def end(processes: list[psutil.Process]) -> None:
    """Kill what is left of these processes, by id."""
    for process in processes:
        if process.is_running():
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def assert_close_to_one_worker(
    flags: MakeFlags, started: Callable[[list[str]], Running], store: Store, tmp_path: Path
) -> None:
    """The first stage is that of one worker up to round-off."""
    settings = LONG | {"workers": 0, "train__lr": 1e-3, "train__epochs": 10}
    done = started(flags(tmp_path / "one", "gain_inf", "llama", "roget", **settings)).wait()
    assert done.code == 0, done.err
    (key,) = Store(str(tmp_path / "one")).stage_keys()
    assert_same_part(store.read(key), Store(str(tmp_path / "one")).read(key), 1e-3)


def test_a_damaged_model_is_one_message_from_the_workers_too(
    started: Callable[[list[str]], Running], flags: MakeFlags, tmp_path: Path
) -> None:
    """What only a worker can find out reaches the user as the same one message with exit code 2."""
    broken = shutil.copytree(flags.models["llama"], tmp_path / "model")
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    done = started(flags(tmp_path / "store", "sin_lora", "llama", "roget", workers=1, model__name=broken)).wait()
    assert done.code == 2, done.err
    assert f"error: model.name: {broken} cannot be loaded" in done.err
    assert "Traceback" not in done.err
