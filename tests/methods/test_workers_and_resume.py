"""What must hold for every method wherever it runs: the number of workers changes nothing. A kill in mid-stage is in the
shared matrix."""

from __future__ import annotations

import pytest

from raycl.testing.ranks import Pair, assert_two_workers_do_what_one_does, job_of, make_odd_tasks
from tests.kit.cases import CASES


@pytest.fixture(scope="session")
def odd_tasks():
    """Tasks whose rows do not fall into equal shares."""
    return make_odd_tasks()


@pytest.fixture(scope="session")
def pair(request, tiny_folders, odd_tasks, tmp_path_factory):
    """Two workers on the jobs of the tests that were chosen, in their order: starting one pair per job would take long."""
    chosen = [item.callspec.params for item in request.session.items if "pair" in getattr(item, "fixturenames", ())]
    names = dict.fromkeys((params["name"], params["family"]) for params in chosen)
    jobs = [job_of(f"{name}-{family}", CASES[name], tiny_folders[family]) for name, family in names]
    pair = Pair(tmp_path_factory.mktemp("pair"), jobs, odd_tasks)
    yield pair
    pair.stop()


@pytest.mark.parametrize("name", list(CASES))
def test_two_workers_do_what_one_does(pair, name, family, tiny, tiny_folder, odd_tasks):
    """Same global batch: same losses, penalties and parts over two stages; and both workers hold the same part."""
    job = job_of(f"{name}-{family}", CASES[name], tiny_folder)
    assert_two_workers_do_what_one_does(pair, tiny, job, odd_tasks)
