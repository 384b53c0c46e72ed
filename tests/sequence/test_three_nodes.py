"""Three nodes of Ray on this machine: a node that dies in the middle of a stage changes no byte of what a run leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from raycl.state.store import Store
from tests.kit.cluster import QUICK, Head, Node, further_node, head_node
from tests.kit.commands import Commands
from tests.kit.long_runs import LONG, WORKER, wait_for_early
from tests.kit.runs import MakeFlags, digests

pytestmark = pytest.mark.slow
OPEN = {"RAY_AUTH_MODE": "disabled"}


@dataclass(frozen=True)
class Cluster:
    """A head and two further nodes, of one CPU each."""

    head: Head
    others: list[Node]


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """A cluster that soon knows when a node is gone."""
    with ExitStack() as stack:
        head = stack.enter_context(head_node(OPEN, cpus=1, health=QUICK))
        yield Cluster(head, [stack.enter_context(further_node(head, OPEN)) for _ in range(2)])


def look(folder: Path, stores: list[str]) -> None:
    """What the doctor finds of a cluster and of stores on its nodes."""
    from raycl.doctor.cluster import ray, store_on_nodes
    from raycl.doctor.finding import Places

    found = [ray(Places()), *(store_on_nodes(Places(store=store)) for store in stores)]
    (folder / "found.json").write_text(json.dumps([vars(one) if one else None for one in found]))


def test_the_doctor_asks_every_node(three: Cluster, commands: Commands, tmp_path: Path) -> None:
    """A folder is seen by all three; what is in one process's memory by none."""
    stores = [str(tmp_path / "store"), "memory://store"]
    done = commands.call(look, stores, RAY_ADDRESS=three.head.address, **OPEN).wait()
    assert done.code == 0, done.err
    cluster, folder, memory = json.loads((done.folder / "found.json").read_text())
    assert f"{three.head.address}: 3 nodes, 3 CPUs, 0 GPUs" in cluster["found"]
    assert (folder["outcome"], folder["found"]) == ("ok", f"all 3 nodes see {stores[0]}")
    assert memory["outcome"] == "failed" and "3 of 3 nodes do not see memory://store" in memory["found"]
    assert "mounted at the same path" in memory["fix"]


def test_a_node_that_dies_changes_nothing(three: Cluster, commands: Commands, flags: MakeFlags, tmp_path: Path) -> None:
    """Two workers on two nodes; SIGKILL of the raylet of one of them in the middle of stage 2: the same command goes on with
    the nodes that are left, and ends with the digests of a run that nothing disturbed."""
    cluster = {
        "RAY_ADDRESS": three.head.address,
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAYCL_OWN_CLUSTER": "",
        **OPEN,
    }
    settings = LONG | {"workers": 2, "train__engine": "torch"}

    def command(store: str) -> list[str]:
        return flags(tmp_path / store, "gain_inf", "llama", "roget,snippets", **settings)

    running = commands.start(command("store"), **cluster)
    wait_for_early(running)
    assert three.head.below("_QueueActor"), (
        "what events come through must not end with a node that the driver is not on"
    )
    node = next(one for one in three.others if one.below(WORKER))
    (raylet,) = (one for one in node.below("raylet/raylet") if one.name() == "raylet")
    raylet.kill()
    done = running.wait()
    assert done.code == 0, done.err
    assert [event["stage"] for event in done.events if event["event"] == "stage_start"] == [1, 2, 2]
    assert len([event for event in done.events if event["event"] == "retry"]) == 1
    undisturbed = commands.start(command("undisturbed"), **cluster).wait()
    assert undisturbed.code == 0, undisturbed.err
    assert not [event for event in undisturbed.events if event["event"] == "retry"]
    assert digests(tmp_path / "store") == digests(tmp_path / "undisturbed")
    store = Store(str(tmp_path / "store"))
    assert store.verify() == []
    assert {store.manifest(key).runtime["workers"] for key in store.stage_keys()} == {2}
    assert (tmp_path / "store" / "ray").is_dir(), "where all nodes see Ray Train's own records"
