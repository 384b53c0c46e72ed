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
from tests.kit.cluster import Head, end
from tests.kit.commands import SECONDS, Commands, Running
from tests.kit.long_runs import LONG, WORKER, wait_for_early
from tests.kit.outside import PLACE, write_package
from tests.kit.runs import MakeFlags, assert_same_part, digests

pytestmark = pytest.mark.slow
Start = Callable[..., Running]


@pytest.fixture
def started(commands: Commands, ray_head: Head) -> Iterator[Start]:
    """Starts commands on the tests' cluster, or with `own` in this folder on one that the command starts for itself;
    whatever processes they leave are ended by id."""
    running: list[Running] = []

    def start(arguments: list[str], own: str | None = None, where: Path | None = None) -> Running:
        cluster = {"RAY_ADDRESS": ray_head.address} if own is None else {"RAY_ADDRESS": "", "RAY_TMPDIR": own}
        running.append(commands.start(arguments, where=where, **cluster))
        return running[-1]

    yield start
    left = [child for one in running for child in children(one)]
    for one in running:
        one.process.kill()
    end(left)


@pytest.fixture
def own_folder() -> Iterator[str]:
    """A folder for a Ray session, with a path short enough for sockets."""
    folder = tempfile.mkdtemp(prefix="rc", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def children(running: Running) -> list[psutil.Process]:
    """All processes below a command."""
    try:
        return psutil.Process(running.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of two long stages, run in one process without Ray's workers."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    done = commands.run(flags(store, "gain_inf", "llama", "roget,snippets", **LONG))
    assert done.code == 0, done.err
    return store


def test_all_stages_run_in_one_worker_group(started: Start, flags: MakeFlags, tmp_path: Path) -> None:
    """One worker process trains all stages, apart from the driver: no stage starts a process, and events come in order.
    Fifteen stages in workers are in test_chaos.py."""
    running = started(flags(tmp_path / "store", "gain_o", "llama", workers=1, eval__forward="false"))
    done = running.wait()
    assert done.code == 0, done.err
    store = Store(str(tmp_path / "store"))
    runtimes = [store.manifest(key).runtime for key in store.stage_keys()]
    assert len(runtimes) == 4
    assert {runtime["workers"] for runtime in runtimes} == {1}
    (process,) = {runtime["process"] for runtime in runtimes}
    assert process != running.process.pid
    seen = [(event["event"], event["stage"]) for event in done.events if event["event"] in ("stage_start", "stage_end")]
    assert seen == [(name, stage) for stage in range(1, 5) for name in ("stage_start", "stage_end")]
    assert store.verify() == []


def test_a_killed_worker_is_replaced_and_nothing_changes(
    started: Start, ray_head: Head, flags: MakeFlags, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL of the worker in the middle of stage 2: the same command goes on by itself and ends with the same bytes."""
    running = started(flags(tmp_path / "store", "gain_inf", "llama", "roget,snippets", workers=1, **LONG))
    wait_for_early(running)
    assert not [one for name in ("DatasetManager", "PreemptionWatcher") for one in ray_head.below(name)]
    (worker,) = ray_head.below(WORKER)
    worker.send_signal(signal.SIGKILL)
    done = running.wait()
    assert done.code == 0, done.err
    assert digests(tmp_path / "store") == digests(undisturbed)
    starts = [event["stage"] for event in done.events if event["event"] == "stage_start"]
    assert starts == [1, 2, 2]
    (retry,) = [event for event in done.events if event["event"] == "retry"]
    assert (retry["attempt"], retry["most"]) == (1, 2)
    (line,) = [line for line in done.out.splitlines() if "is started again, try 1 of 2" in line]
    assert line.startswith(f"the worker group failed ({retry['reason']})")
    store = Store(str(tmp_path / "store"))
    assert len({store.manifest(key).runtime["process"] for key in store.stage_keys()}) == 2


def test_a_stopped_worker_is_missed_and_replaced(
    started: Start, ray_head: Head, flags: MakeFlags, tmp_path: Path
) -> None:
    """SIGSTOP of one of two workers in the middle of stage 2: the other one, which waits for it, says where and ends itself;
    the group is started again and goes on."""
    settings = LONG | {"workers": 2, "train__lr": 1e-3, "train__patience": 20}
    running = started(flags(tmp_path / "store", "gain_inf", "llama", "roget,snippets", **settings))
    wait_for_early(running)
    workers = ray_head.below(WORKER)
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGSTOP)
    done = running.wait()
    assert done.code == 0, done.err
    (retry,) = [event for event in done.events if event["event"] == "retry"]
    assert "of 2: nothing has moved on for 20 s at train/" in retry["reason"]
    assert f"the worker group failed ({retry['reason']})" in done.out
    assert [event["stage"] for event in done.events if event["event"] == "stage_start"] == [1, 2, 2]
    assert len(digests(tmp_path / "store")) == 2
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert alive == []


def test_a_killed_driver_takes_its_workers_along_and_the_rerun_ends_with_two_workers(
    started: Start, own_folder: str, flags: MakeFlags, tmp_path: Path
) -> None:
    """Two workers on the driver's own cluster, SIGKILL of the driver in stage 2: no worker stays; the same command then
    runs only the rest."""
    # Workers whose driver is gone train on until they notice.
    settings = LONG | {"workers": 2, "train__lr": 1e-3, "train__epochs": [5, 60]}
    arguments = flags(tmp_path / "store", "gain_inf", "llama", "roget,snippets", **settings)
    running = started(arguments, own_folder)
    wait_for_early(running)
    below = children(running)
    workers = [child for child in below if WORKER in " ".join(child.cmdline())]
    assert len(workers) == 2
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.join()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
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


def assert_close_to_one_worker(flags: MakeFlags, started: Start, store: Store, tmp_path: Path) -> None:
    """The first stage is that of one worker up to round-off."""
    settings = LONG | {"workers": 0, "train__lr": 1e-3, "train__epochs": 5}
    done = started(flags(tmp_path / "one", "gain_inf", "llama", "roget", **settings)).wait()
    assert done.code == 0, done.err
    (key,) = Store(str(tmp_path / "one")).stage_keys()
    assert_same_part(store.read(key), Store(str(tmp_path / "one")).read(key), 1e-3)


def test_groups_share_stages_that_depend_on_no_other(started: Start, flags: MakeFlags, tmp_path: Path) -> None:
    """Two groups of one worker train four stages: each once, with the bytes of one process, and all of them are scored.

    Another run holds the first stage, so the one group waits, until the other has trained the rest.
    """
    alone = started(flags(tmp_path / "alone", "route_lora", "llama", eval__forward="false")).wait()
    assert alone.code == 0, alone.err
    first = next(event["key"] for event in alone.events if event["event"] == "stage_end")
    store = Store(str(tmp_path / "store"))
    lease = store.lease(first)
    assert lease.acquire(0)
    arguments = flags(tmp_path / "store", "route_lora", "llama", workers=1, groups=2, eval__forward="false")
    together = started(arguments)
    deadline = time.monotonic() + SECONDS
    # Until the one group has trained what it can, and the other is there and waits.
    while len(store.stage_keys()) < 3 or "waiting for another run" not in (together.folder / "out").read_text():
        assert together.process.is_alive() and time.monotonic() < deadline, (together.folder / "err").read_text()
        time.sleep(0.1)
    lease.release()
    done = together.wait()
    assert done.code == 0, done.err
    assert "2 groups of 1 Ray Train worker" in done.out
    assert len(digests(tmp_path / "store")) == 4 and digests(tmp_path / "store") == digests(tmp_path / "alone")
    assert len({store.manifest(key).runtime["process"] for key in store.stage_keys()}) == 2
    ends = [event["stage"] for event in done.events if event["event"] == "stage_end"]
    assert sorted(ends) == [1, 2, 3, 4]
    scores = [[one["score"] for one in run.events if one["event"] == "scores"] for run in (done, alone)]
    assert len(scores[0]) == 10 and sorted(scores[0]) == sorted(scores[1])


def test_one_group_scores_while_another_trains_also_if_it_dies(
    started: Start, ray_head: Head, flags: MakeFlags, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL of the worker that scores, in the middle of stage 2: the other one trains on, and scores what is left."""
    settings = LONG | {"workers": 1, "eval__workers": 1}
    running = started(flags(tmp_path / "store", "gain_inf", "llama", "roget,snippets", **settings))
    store = Store(str(tmp_path / "store"))
    wait_for_early(running)
    first = next(key for key in store.stage_keys() if store.manifest(key).stage == 1)
    trains = store.manifest(first).runtime["process"]
    scorers = [one for one in ray_head.below(WORKER) if one.pid != trains]
    assert len(scorers) == 1
    scorers[0].send_signal(signal.SIGKILL)
    done = running.wait()
    assert done.code == 0, done.err
    assert "1 Ray Train worker, and 1 that only scores" in done.out
    assert "what is left is scored in the end" in done.err
    assert "of it after the last training" in done.out
    assert digests(tmp_path / "store") == digests(undisturbed)
    keys, other = [key for room, key in store.entries() if room == "scores"], Store(str(undisturbed))
    assert len(keys) == 3
    for key in keys:
        assert store.read_scores(key)["score"] == other.read_scores(key)["score"]


def test_a_method_from_a_folder_of_the_users_trains_in_workers(
    started: Start, flags: MakeFlags, tmp_path: Path
) -> None:
    """Named by its class in the folder where the command runs: two workers import it and make the stages of one process."""
    package = write_package(tmp_path / "mine").parent
    method = {"name": PLACE, "size": 0.5}
    named = [*flags(tmp_path / "store", method, "llama", "roget,snippets", workers=2), "--method", PLACE]
    done = started(named, where=tmp_path / "mine").wait()
    assert done.code == 0, done.err
    alone = started(
        [*flags(tmp_path / "alone", method, "llama", "roget,snippets", workers=0), "--method", PLACE],
        where=package.parent,
    ).wait()
    assert alone.code == 0, alone.err
    store, other = Store(str(tmp_path / "store")), Store(str(tmp_path / "alone"))
    assert sorted(store.stage_keys()) == sorted(other.stage_keys()) and len(store.stage_keys()) == 2
    for key in store.stage_keys():
        assert_same_part(store.read(key), other.read(key), 1e-3)
        assert store.manifest(key).runtime["workers"] == 2


def test_a_damaged_model_is_one_message_from_the_workers_too(started: Start, flags: MakeFlags, tmp_path: Path) -> None:
    """What only workers can find out reaches the user as the same one message with exit code 2, and is not tried again."""
    broken = shutil.copytree(flags.models["llama"], tmp_path / "model")
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    done = started(flags(tmp_path / "store", "sin_lora", "llama", "roget", workers=2, model__name=broken)).wait()
    assert done.code == 2, done.err
    assert f"error: model.name: {broken} cannot be loaded" in done.err
    assert [event["event"] for event in done.events] == ["phase"], "one look at the model, and no retry"
    assert "Traceback" not in done.err


def test_a_loss_that_diverges_ends_the_group_at_once(started: Start, flags: MakeFlags, tmp_path: Path) -> None:
    """On both workers at the same step: one message with exit code 2, and no second try, which would diverge as well."""
    wild = {"train__lr": 10, "train__max_grad_norm": 0, "method__alpha": 3e38}
    done = started(flags(tmp_path / "store", "sin_lora", "llama", "roget", workers=2, **wild)).wait()
    assert done.code == 2, done.err
    assert "Lower train.lr (now 10.0)" in done.err and "Traceback" not in done.err
    assert not [event for event in done.events if event["event"] == "retry"]
