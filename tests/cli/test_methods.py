"""`raycl methods`: raycl's own, installed ones with their package, a named class; and the skeleton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycl.methods.registry import METHODS
from tests.kit.cli import invoke
from tests.kit.outside import PLACE, forgotten, install, write_package


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, on Python's path; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    with forgotten("far_methods"):
        monkeypatch.syspath_prepend(str(tmp_path))
        yield tmp_path


def test_methods_of_installed_packages_stand_at_the_end(here: Path) -> None:
    """With the package; one that cannot be used is shown with the reason and hides no other."""
    write_package(here)
    install(here, "far-away", {"vector": PLACE, "lost": "far_methods.nowhere:Lost", "ewc": PLACE})
    answer = invoke("methods")
    assert answer.code == 0, answer.stderr
    blocks = [line.split()[0] for line in answer.stdout.splitlines() if line and not line.startswith(" ")]
    assert blocks == [*METHODS, "lost", "vector"]
    assert f"package:         far-away 1.2 ({PLACE})" in answer.stdout
    assert "lost  cannot be used: far_methods.nowhere:Lost: there is no module" in answer.stdout
    assert "ewc  cannot be used: the installed package far-away 1.2 brings a method called 'ewc'" in answer.stdout


def test_a_class_is_listed_on_request(here: Path) -> None:
    """Or refused in one message."""
    write_package(here)
    answer = invoke("methods", ["--method", PLACE])
    assert answer.code == 0 and f"{PLACE}  one vector before every prompt" in answer.stdout
    answer = invoke("methods", ["--method", "far_methods.vector:Vektor"])
    assert answer.code == 2 and "has no 'Vektor'; methods there: Vector" in answer.stderr


def test_fields_of_a_class_are_listed(here: Path) -> None:
    """As of any method."""
    write_package(here)
    answer = invoke("fields", [PLACE])
    assert answer.code == 0 and "method.size" in answer.stdout


def test_a_skeleton_is_written_once(here: Path) -> None:
    """The second call is refused with exit code 2."""
    answer = invoke("methods", ["new", "slow_average", "--folder", "mine"])
    assert answer.code == 0 and str(here / "mine" / "slow_average") in answer.stdout
    answer = invoke("methods", ["new", "slow_average", "--folder", "mine"])
    assert answer.code == 2 and "is there already" in answer.stderr
