"""The skeleton of a method: what is written, what is refused, and that it is what its docstring says."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycl.errors import SpecError
from raycl.methods.registry import method_class
from raycl.skeleton.write import class_name, new_method
from tests.kit.outside import forgotten


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; what is imported from below it is forgotten."""
    monkeypatch.chdir(tmp_path)
    with forgotten("slow_average"):
        yield tmp_path


def test_a_skeleton_is_a_method_with_its_tests_and_its_entry_point(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four files, no name of the template's left in them; the class is found where the README says."""
    home = new_method("slow_average", here / "deep" / "down")
    assert home == here / "deep" / "down" / "slow_average"
    names = {path.name for path in home.iterdir()}
    assert names == {"README.md", "pyproject.toml", "slow_average.py", "test_slow_average.py"}
    assert not [path for path in home.iterdir() if "$" in path.read_text() or "NAME" in path.read_text()]
    project = tomllib.loads((home / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["raycl.methods"] == {"slow_average": "slow_average:SlowAverage"}
    monkeypatch.chdir(home)
    method = method_class("slow_average:SlowAverage")
    params = method.Params.model_validate({"name": "slow_average:SlowAverage"})
    assert params.inert(1) == {"decay"} and params.inert(2) == frozenset()
    assert class_name("ema") == "Ema"


def test_what_is_there_is_left_alone(here: Path) -> None:
    """A folder of that name, or a file, is refused and keeps what it holds; a place that cannot be written is said."""
    (here / "slow_average").mkdir()
    (here / "slow_average" / "mine").write_text("mine")
    with pytest.raises(SpecError, match=r"slow_average is there already; give the method another name.*--folder"):
        new_method("slow_average")
    assert [path.name for path in (here / "slow_average").iterdir()] == ["mine"]
    with pytest.raises(SpecError, match=r"--folder .*mine.*cannot be written .*name another place"):
        new_method("slow_average", here / "slow_average" / "mine")
    (here / "far").mkdir()
    assert new_method("slow_average", "far"), "a bare folder of that name elsewhere is in nobody's way"


@pytest.mark.parametrize("name", ["", "Ema", "1st", "a-b", "a.b", "../up", "class", "_a", "é"])
def test_a_bad_name_is_refused(here: Path, name: str) -> None:
    """It must be a module's and a method's."""
    with pytest.raises(SpecError, match="expected lower-case letters, digits and _"):
        new_method(name)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("name", "said"), [("o_lora", "a method of this name"), ("json", "a module of this name")])
def test_a_taken_name_is_refused(here: Path, name: str, said: str) -> None:
    """A method's of raycl's own, and a module's that would be imported in its place."""
    with pytest.raises(SpecError, match=said):
        new_method(name)
    assert list(here.iterdir()) == []
