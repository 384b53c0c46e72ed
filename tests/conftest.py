"""Shared by all tests: a home of its own, fixed threads, two tiny random models in folders, toy tasks, stages in memory."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Both must stand before torch or raycl is imported anywhere.
os.environ["RAYCL_HOME"] = tempfile.mkdtemp(prefix="raycl-tests-")
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # for all processes that tests start; see tests/__init__.py
# As on a cluster of raycl's own: fewer processes for each group.
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
os.environ["RAYCL_OWN_CLUSTER"] = "1"

import pytest

from raycl.testing.tiny import FAMILIES, load_tiny, save_tiny
from raycl.testing.toys import StageResult, make_toy_task, run_sequence_in_memory, run_stage_in_memory
from tests.kit.cluster import Head, head_node
from tests.kit.commands import Commands
from tests.kit.databases import copy_databases
from tests.kit.groups import LONG_GROUPS, group_of, is_other_pair, is_repetition
from tests.kit.places import BENCHMARK
from tests.kit.runs import MakeFlags
from tests.kit.tiny_texts import save_model, write_tasks

if TYPE_CHECKING:
    from raycl.models.load import LoadedModel
    from raycl.tasks.task import Task


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With pytest-xdist (`-n 2`): whole groups of tests go to its processes, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--every-pair`: the costly tests of a case on both model families."""
    parser.addoption(
        "--every-pair", action="store_true", help="costly tests of a case on both model families, not on one"
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Leave out the other one of two like pairs, mark what is `thorough` before `-m` looks, and put the longest groups first
    after pytest has made its own order."""
    if not config.getoption("every_pair"):
        config.hook.pytest_deselected(items=[item for item in items if is_other_pair(item)])
        items[:] = [item for item in items if not is_other_pair(item)]
    for item in items:
        if is_repetition(item):
            item.add_marker(pytest.mark.thorough)
    yield
    long = {name: place for place, name in enumerate(LONG_GROUPS)}
    items.sort(key=lambda item: long.get(group_of(item.nodeid), len(long)))


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: looking for garbage in it takes a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


copy_databases()


@pytest.fixture(scope="session", autouse=True)
def raycl_home() -> Iterator[Path]:
    """The home of this test session, removed at its end."""
    yield Path(os.environ["RAYCL_HOME"])
    shutil.rmtree(os.environ["RAYCL_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny models, by family, as `save_pretrained` writes them."""
    folders = {name: tmp_path_factory.mktemp(f"tiny-{name}") for name in FAMILIES}
    for name, folder in folders.items():
        save_tiny(name, folder)
    return folders


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """llama (decoder-only) and t5 (encoder-decoder)."""
    return request.param


@pytest.fixture(scope="session")
def tiny_folder(tiny_folders: dict[str, Path], family: str) -> Path:
    """The folder of a tiny model."""
    return tiny_folders[family]


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    """A tiny random model in fp32; whoever puts adapters on takes them off again."""
    return load_tiny(tiny_folder, "fp32")


@pytest.fixture(scope="session")
def tiny_bf16(tiny_folder: Path) -> LoadedModel:
    """The same model with base weights in bf16."""
    return load_tiny(tiny_folder, "bf16")


@pytest.fixture(scope="session")
def toy_task() -> Callable[..., Task]:
    """The maker of toy tasks."""
    return make_toy_task


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., StageResult]:
    """The runner of one stage in this process."""
    return run_stage_in_memory


@pytest.fixture(scope="session")
def run_sequence() -> Callable[..., list[StageResult]]:
    """The runner of a sequence of stages in this process."""
    return run_sequence_in_memory


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models with a small tokenizer of the demo's texts, by family."""
    root = tmp_path_factory.mktemp("models")
    return {family: save_model(family, root / family) for family in ("llama", "t5")}


@pytest.fixture(scope="session")
def fifteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen small tasks in the benchmark layout, under the names of the long orders."""
    from raycl.tasks.catalogue import open_catalogue

    return write_tasks(tmp_path_factory.mktemp("fifteen"), open_catalogue().orders["long-4"])


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Starts commands, all with one home and one MLflow database."""
    root = tmp_path_factory.mktemp("commands")
    home = root / "home"
    environment = {"RAYCL_HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    return Commands(root, environment | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160", "CUDA_VISIBLE_DEVICES": ""})


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """The one Ray cluster of all tests that start none of their own; it has two CPUs."""
    with head_node({"RAY_AUTH_MODE": "disabled"}) as head:
        yield head


@pytest.fixture(scope="session")
def flags(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> MakeFlags:
    """The maker of command lines."""
    return MakeFlags(model_folders, tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder with the real benchmark data, or a skip."""
    if not (BENCHMARK / "manifest.json").is_file():
        pytest.skip("no benchmark data: set RAYCL_TEST_BENCHMARK to a folder in the benchmark layout")
    return BENCHMARK
