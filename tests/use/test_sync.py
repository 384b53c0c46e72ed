"""Runs that MLflow did not take while they ran are recorded later, once."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from raycl.events import Event, Step
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.resolve import resolve
from raycl.tracking import outbox
from raycl.tracking.memory import FILE, LOCK, RunMemory, unrecorded
from raycl.tracking.runs import outbox_for
from raycl.use.heads import find_head
from raycl.use.sync import record_run, unrecorded_runs
from tests.kit.commands import Commands
from tests.kit.mlflow_server import MlflowServer, kill
from tests.kit.runs import MakeFlags

STEPS = [1, 2, 3, 4]
"""The optimizer steps of each stage."""


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An outage is given up after a moment; no test hears of another one's."""
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYCL_DEBUG", "1")  # quiet mode would silence the other tests' loggers as well
    yield
    outbox_for.cache_clear()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "mlflow.db"


def uri_of(database: Path) -> str:
    return f"sqlite:///{database}"


def run(flags: MakeFlags, tmp_path: Path, database: Path) -> Path:
    """A sequence of two stages; its output folder."""
    spec = resolve("laptop", [flags.spec("sin_lora", "llama") | {"order": "roget,snippets"}], 0)
    folder = tmp_path / "home" / "runs" / "one"
    run_sequence(spec, Options(str(tmp_path / "store"), uri_of(database), output=str(folder)), [])
    return folder


def loss_steps(database: Path) -> list[list[int]]:
    """Per stage's run, the steps at which a loss is recorded; of the sequence there must be one run, which has ended."""
    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=uri_of(database))
    (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == "raycl"]
    stages = client.search_runs([experiment], "tags.`raycl.kind` = 'stage'", order_by=["tags.`raycl.stage`"])
    whole = client.search_runs([experiment], "tags.`raycl.kind` = 'sequence'")
    assert [one.info.status for one in whole] == ["FINISHED"], "one run of the sequence"
    return [[point.step for point in client.get_metric_history(one.info.run_id, "loss")] for one in stages]


def test_a_damaged_database_stops_no_run_and_after_mending_it_the_same_command_records(
    flags: MakeFlags, commands: Commands, tmp_path: Path, database: Path
) -> None:
    """Each in a process of its own, since MLflow keeps what it has opened."""
    database.write_bytes(b"this is no database " * 100)
    arguments = flags(tmp_path / "store", order="roget,snippets")
    folder = Path(arguments[arguments.index("--output") + 1])
    done = commands.run(arguments, whole=True, MLFLOW_TRACKING_URI=uri_of(database))
    assert done.code == 0 and "file is not a database" in done.err
    assert (folder / "summary.json").is_file()
    assert unrecorded(folder) == uri_of(database)
    database.unlink()
    done = commands.run(arguments, whole=True, MLFLOW_TRACKING_URI=uri_of(database))
    assert (done.code, done.err) == (0, "")
    assert unrecorded(folder) is None
    assert loss_steps(database) == [STEPS, STEPS]


def test_sync_records_once_what_an_outage_kept_away(
    flags: MakeFlags, commands: Commands, tmp_path: Path, database: Path
) -> None:
    """From the command line, without naming the run; twice is once. Another process holds the database all the time."""
    folder = tmp_path / "home" / "runs" / "one"
    places = {"RAYCL_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": uri_of(database)}
    arguments = [*flags(tmp_path / "store", order="roget,snippets"), "--output", str(folder)]
    with FileLock(f"{database}.lock"):
        done = commands.run(arguments, whole=True, **places)
    assert done.code == 0 and "`raycl sync`" in done.err, done.err
    assert unrecorded_runs() == [folder]
    said = [commands.typed(line, tmp_path, places) for line in (["sync"], ["sync"], ["sync", str(folder)])]
    assert [one.code for one in said] == [0, 0, 0], said
    assert [one.out.splitlines()[-1] for one in said] == ["1 of 1 recorded", "nothing to record", "1 of 1 recorded"]
    assert loss_steps(database) == [STEPS, STEPS]


def test_a_run_whose_id_was_never_noted_is_found_by_its_mark(flags: MakeFlags, tmp_path: Path, database: Path) -> None:
    """As after a kill between MLflow's answer and the note: no second run."""
    folder = run(flags, tmp_path, database)
    note = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(note | {"run_id": "", "finished": None}))
    assert record_run(find_head(str(folder)), folder, uri_of(database))
    assert loss_steps(database) == [STEPS, STEPS]
    assert json.loads((folder / FILE).read_text())["run_id"] == note["run_id"]


def run_and_kill(scratch: Path, fields: dict[str, Any], pid: int, options: Options) -> None:
    """Run a sequence whose MLflow server is killed at the first step of its second stage. In a process of its own: what
    waits to be recorded is gone with it."""
    killed: list[int] = []

    class Killing:
        """A listener."""

        def handle(self, event: Event) -> None:
            """Kills the server once."""
            if isinstance(event, Step) and event.stage == 2 and not killed:
                kill(pid)
                killed.append(pid)

    outbox.PATIENCE_SECONDS = 0.2
    run_sequence(resolve("laptop", [fields], 0), options, [Killing()])
    assert killed


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_is_made_up_for(
    flags: MakeFlags, commands: Commands, tmp_path: Path
) -> None:
    """SIGKILL while the second stage trains: the run ends with a warning; once the server is back, `raycl sync` records what
    it missed, each step once."""
    server, folder = MlflowServer(tmp_path), tmp_path / "home" / "runs" / "one"
    server.start()
    fields = flags.spec("sin_lora", "llama") | {"order": "roget,snippets"}
    options = Options(str(tmp_path / "store"), server.url, output=str(folder))
    home = str(tmp_path / "home")
    done = commands.call(run_and_kill, fields, server.pid, options, RAYCL_HOME=home, RAYCL_DEBUG="1").wait()
    assert done.code == 0 and "raycl sync" in done.err, done.err
    assert unrecorded(folder) == server.url
    server.kill()
    server.start()
    assert record_run(find_head(str(folder)), folder, server.url)
    server.kill()
    assert unrecorded(folder) is None
    assert loss_steps(tmp_path / "server.db") == [STEPS, STEPS]


@pytest.mark.parametrize("torn", ["", "{", '{"uri": "sqli', "[]", "null", '{"run_id": 3}', "\udcff"])
def test_a_torn_note_says_nothing(torn: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(torn.encode("utf-8", "surrogateescape"))
    memory = RunMemory(tmp_path, "sqlite:////somewhere.db")
    assert (memory.run_id, memory.finished) == (None, None)
    assert unrecorded(tmp_path) is None
    assert memory.claim()
    assert json.loads((tmp_path / FILE).read_text())["mark"] == memory.mark


def test_of_two_drivers_on_one_folder_one_records(
    flags: MakeFlags, tmp_path: Path, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other runs the sequence and leaves MLflow alone; its end does not make the run recorded."""
    folder = tmp_path / "home" / "runs" / "one"
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK), caplog.at_level(logging.WARNING, "raycl"):
        run(flags, tmp_path, database)
    assert "another process records this run in MLflow" in caplog.text
    assert (folder / "summary.json").is_file() and not database.exists()
    run(flags, tmp_path, database)
    assert loss_steps(database) == [STEPS, STEPS]


def test_where_a_file_system_has_no_locks_a_run_is_recorded(
    flags: MakeFlags, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FileLock, timeout: float | None = None) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("raycl.tracking.memory.FileLock.acquire", refuse)
        memory = RunMemory(tmp_path, uri_of(database))
        assert memory.claim()
        memory.release()
