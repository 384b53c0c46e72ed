"""Nothing leaks from stage to stage: warm, fresh, killed and resumed processes give the same bytes (CPU, fp32)."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.state.store import Store
from tests.kit.commands import Commands
from tests.kit.runs import MakeFlags, digests

TASKS = ("roget", "snippets", "plots")
EACH = [(method, family) for method in ("sin_lora", "gain_inf") for family in ("llama", "t5")]
SMALL = {"eval__forward": "false", "method__dropout": 0.1, "model__dropout": 0.1, "train__epochs": 2}
"""Eight steps a stage, with dropout, so that a generator in another state shows."""


@pytest.fixture(scope="module", params=EACH, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Method and family."""
    return request.param


@pytest.fixture(scope="module")
def warm(commands: Commands, flags: MakeFlags, case: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed run of all stages in one process."""
    store = tmp_path_factory.mktemp("warm") / "store"
    done = commands.run(flags(store, *case, ",".join(TASKS), **SMALL))
    assert done.code == 0, done.err
    assert len(digests(store)) == len(TASKS)
    return store


def test_fresh_processes_give_the_same_bytes(
    commands: Commands, flags: MakeFlags, case: tuple[str, str], warm: Path, tmp_path: Path
) -> None:
    """Each stage in a process of its own: same keys, same content as in the warm process."""
    for last in range(1, len(TASKS) + 1):
        done = commands.run(flags(tmp_path / "store", *case, ",".join(TASKS[:last]), **SMALL))
        assert done.code == 0, done.err
        trained = [event["stage"] for event in done.events if event["event"] == "stage_start"]
        assert trained == [last]
    assert digests(tmp_path / "store") == digests(warm)


@pytest.mark.parametrize("every", [0, 2])
def test_a_killed_run_resumes_to_the_same_bytes(
    commands: Commands, flags: MakeFlags, case: tuple[str, str], warm: Path, tmp_path: Path, every: int
) -> None:
    """SIGKILL before step 6 of stage 2, then the same command: same content; with checkpoints only what was lost runs."""
    arguments = flags(tmp_path / "store", *case, ",".join(TASKS), train__checkpoint_every=every, **SMALL)
    assert commands.run(arguments, stop_at=(2, 6)).code == -9
    assert len(digests(tmp_path / "store")) == 1
    done = commands.run(arguments)
    assert done.code == 0, done.err
    assert digests(tmp_path / "store") == digests(warm)
    steps = [event["step"] for event in done.events if event["event"] == "step" and event["stage"] == 2]
    assert steps == list(range(5 if every else 1, 9))
    assert _losses(tmp_path / "store") == _losses(warm)


def test_a_checkpoint_between_log_lines_keeps_the_logged_means(
    commands: Commands, flags: MakeFlags, tmp_path: Path
) -> None:
    """Log lines that span a checkpoint, and the best of several epochs, are those of an undisturbed run."""
    settings = SMALL | {
        "train__log_every": 5,
        "train__checkpoint_every": 3,
        "train__epochs": 4,
        "train__keep": "best",
        "train__holdout": 0.25,
        "train__lr": 0.3,
    }
    arguments = {name: flags(tmp_path / name, "o_lora", "t5", "roget", **settings) for name in ("whole", "killed")}
    assert commands.run(arguments["whole"]).code == 0
    assert commands.run(arguments["killed"], stop_at=(1, 11)).code == -9
    done = commands.run(arguments["killed"])
    assert done.code == 0, done.err
    assert [event["step"] for event in done.events if event["event"] == "step"] == [10, 12]
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_only_the_stage_so_far(commands: Commands, flags: MakeFlags, tmp_path: Path) -> None:
    """A mid-stage checkpoint that cannot be trusted is ignored: the stage starts over and ends the same."""
    arguments = {
        name: flags(tmp_path / name, "sin_lora", "llama", "roget", train__checkpoint_every=1, **SMALL)
        for name in ("whole", "killed")
    }
    assert commands.run(arguments["whole"]).code == 0
    assert commands.run(arguments["killed"], stop_at=(1, 6)).code == -9
    (tensors,) = (tmp_path / "killed" / "partial").glob("*/*/*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    done = commands.run(arguments["killed"])
    assert done.code == 0, done.err
    assert [event["step"] for event in done.events if event["event"] == "step"] == list(range(1, 9))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "partial").glob("*/*"))


def _losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Key -> (step, loss) of every log line of every stage."""
    store = Store(str(folder))
    logs = {key: store.manifest(key).log for key in store.stage_keys()}
    return {key: [(r["step"], r["loss"]) for r in log if r["event"] == "step"] for key, log in logs.items()}
