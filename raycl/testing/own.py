"""The shared matrix for one method from outside of raycl, with all that its tests need: tiny models, tasks, two workers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from raycl.errors import SpecError
from raycl.methods.common.base import Method
from raycl.methods.registry import method_params
from raycl.models.load import LoadedModel
from raycl.testing.case import Case
from raycl.testing.matrix import SETTINGS, MethodMatrix, RunSequence, RunStage, Tasks, Trained
from raycl.testing.probes import probe_logits
from raycl.testing.ranks import Pair, assert_two_workers_do_what_one_does, job_of, make_odd_tasks
from raycl.testing.tiny import FAMILIES, load_tiny, save_tiny
from raycl.testing.toys import make_toy_task, run_sequence_in_memory, run_stage_in_memory

STAGES = 3


class OwnMatrix(MethodMatrix):
    """The matrix of the method that `declared` names, with its fixtures."""

    declared: ClassVar[Case]

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        """What the method declares."""
        return cls.declared

    @pytest.fixture(scope="class", params=FAMILIES)
    @classmethod
    def family(cls, request: pytest.FixtureRequest) -> str:
        """llama (decoder-only) and t5 (encoder-decoder)."""
        return request.param

    @pytest.fixture(scope="class")
    @classmethod
    def tiny_folder(cls, family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder of a tiny random model."""
        folder = tmp_path_factory.mktemp(f"tiny-{family}")
        save_tiny(family, folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def tiny(cls, tiny_folder: Path) -> Iterator[LoadedModel]:
        """The tiny model in fp32, computed on by one thread: two runs must not differ in the order of a sum."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield load_tiny(tiny_folder, "fp32")
        torch.set_num_threads(threads)

    @pytest.fixture(scope="class")
    @classmethod
    def toy_tasks(cls) -> Tasks:
        """Three tasks on words of their own, four distinct prompts of uneven length each."""
        return [make_toy_task(number, spread=3) for number in range(1, STAGES + 1)]

    @pytest.fixture(scope="class")
    @classmethod
    def run_stage(cls, case: Case) -> RunStage:
        """The runner of one stage with the case's settings."""
        settings = SETTINGS | case.train
        return lambda model, method, tasks, *state, **train: run_stage_in_memory(
            model, method, tasks, *state, **settings | train
        )

    @pytest.fixture(scope="class")
    @classmethod
    def run_sequence(cls, case: Case) -> RunSequence:
        """The runner of a sequence with the case's settings."""
        settings = SETTINGS | case.train
        return lambda model, method, tasks, **train: run_sequence_in_memory(model, method, tasks, **settings | train)

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tiny: LoadedModel, toy_tasks: Tasks, run_sequence: RunSequence, case: Case) -> Trained:
        """The three stages, in memory; probes are logits on the first task's test split."""
        return run_sequence(tiny, case.params, toy_tasks, probe=probe_logits(tiny, toy_tasks[0].test))

    @pytest.fixture(autouse=True)
    def same_draws(self) -> None:
        """Seed torch's global generator: nothing may depend on the test before."""
        torch.manual_seed(0)

    def test_two_workers_do_what_one_does(
        self, tiny: LoadedModel, tiny_folder: Path, case: Case, tmp_path: Path
    ) -> None:
        """Same global batch: same losses, penalties and parts over two stages; and both workers hold the same part."""
        job, tasks = job_of("own", case, tiny_folder), make_odd_tasks()
        pair = Pair(tmp_path, [job], tasks)
        try:
            assert_two_workers_do_what_one_does(pair, tiny, job, tasks)
        finally:
            pair.stop()


def method_matrix(
    method: str | type[Method], params: Mapping[str, Any] | None = None, **declared: Any
) -> type[OwnMatrix]:
    """The matrix of a method as a class of tests; give it a name that begins with Test, so that pytest finds it.

    `method` is what `--method` takes, or the class; `params` are its settings in the tests, small ones, no name among them.
    `declared` are fields of `raycl.testing.case.Case`, such as `trains="AB"`: what the tests may expect of the method.

    Raises SpecError for a method or settings that cannot be used, and for a field that `Case` does not have.
    """
    name = f"{method.__module__}:{method.__qualname__}" if inspect.isclass(method) else str(method)
    settings = {"name": name, **(params or {})}
    try:
        method_params(name).model_validate(settings)
        case = Case(settings, **declared)
    except (ValueError, TypeError) as error:
        raise SpecError(f"method_matrix({name!r}, {dict(params or {})}): {error}") from None
    return type("Matrix", (OwnMatrix,), {"declared": case, "__doc__": f"The shared matrix of {name}."})
