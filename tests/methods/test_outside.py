"""Methods from outside of the repository: found by class or by entry point, named in keys by their source."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycl.methods import outside
from raycl.methods.registry import METHODS, folders, identity, method_class, method_params, outside_method, short_name
from raycl.methods.sources import source_hash
from tests.kit.outside import PLACE, forgotten, install, toy_source, write_package


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with nothing in it; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    with forgotten("far_methods", "broken", "single", "helper"):
        yield tmp_path


@pytest.fixture
def on_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path, in front."""
    folder = here / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_class_is_found_in_the_current_folder(here: Path) -> None:
    """By module and class, with the source's hash as it is on the disk and the folder to look in."""
    write_package(here)
    assert method_class(PLACE).__name__ == "Vector"
    assert method_params(PLACE).model_validate({"name": PLACE}).at(1) == {"name": PLACE, "size": 0.5}
    found = outside_method(PLACE)
    assert found is not None and (found.place, found.folder) == (PLACE, here)
    assert folders([PLACE, "o_lora", PLACE]) == [str(here)] and folders(METHODS) == []
    assert identity(PLACE) == {"name": PLACE, "source": source_hash("far_methods.vector", here)}
    assert short_name(PLACE) == "Vector" and short_name("o_lora") == "o_lora"
    assert sys.path[-1] == str(here), "after all else: a file there never stands in for a library"


def test_raycls_own_methods_have_no_identity_beside_their_name() -> None:
    """Their keys are what they were."""
    assert all(identity(name) == {} for name in METHODS)


@pytest.mark.parametrize(
    ("file", "text", "name", "said"),
    [
        ("", "", "far_methods.vector:Vector", "no module 'far_methods'.*in the folder that holds 'far_methods'"),
        ("far_methods.py", "", "far_methods.vector:Vector", "no module 'far_methods"),
        ("broken.py", "x = 1\ny = zero\n", "broken:Vector", r"NameError: name 'zero'.*broken\.py, line 2"),
        ("broken.py", "def f(:\n", "broken:Vector", r"SyntaxError.*broken\.py, line 1"),
        (
            "broken.py",
            "import not_there\n",
            "broken:Vector",
            "ModuleNotFoundError: No module named 'not_there'.*line 1",
        ),
        ("single.py", toy_source(), "single:Vektor", "has no 'Vektor'; methods there: Vector"),
        ("single.py", toy_source(), "single:ToyParams", "is no method: derive it from raycl.Method; methods there"),
        ("single.py", "A = 1\n", "single:A", "there is no method in it"),
        (
            "single.py",
            "from raycl import Method\nclass V(Method):\n    pass\n",
            "single:V",
            "lacks consolidate, install",
        ),
        ("single.py", toy_source() + "\nVector.about = 'a toy'\n", "single:Vector", "has no 'about'"),
        ("single.py", toy_source(fixed_name=True), "single:Vector", "takes 'toy' only.*leave the field out"),
        ("single.py", "from raycl.methods.ewc import Ewc\n", "single:Ewc", "another package: name it there, raycl"),
        ("", "", "single:", "names no class: expected package.module:Class"),
        ("", "", "../single:Vector", "names no class"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(here: Path, file: str, text: str, name: str, said: str) -> None:
    """A missing module, one that fails, a class that is none: one message each, as the spec's validation reports it."""
    if file:
        (here / file).write_text(text)
    with pytest.raises(ValueError, match=f"(?s){said}"):
        method_class(name)


def test_a_class_of_a_program_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes cannot import it: a notebook's class belongs into a file."""
    monkeypatch.setattr(sys.modules["__main__"], "Vector", method_class("o_lora"), raising=False)
    monkeypatch.setattr(method_class("o_lora"), "__module__", "__main__")
    monkeypatch.setattr(outside, "require_name", lambda params, name: None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
    with pytest.raises(ValueError, match="put the class into a file of its own"):
        method_class("__main__:Vector")


def test_an_installed_package_brings_a_name(on_path: Path) -> None:
    """Its entry point is the method's name; in keys it stands by its class, as if the class had been named."""
    write_package(on_path)
    install(on_path, "far-away", {"vector": PLACE})
    assert method_class("vector") is method_class(PLACE)
    assert identity("vector") == identity(PLACE)
    assert [one.package for one in outside.installed()["vector"]] == ["far-away 1.2"]
    with pytest.raises(ValueError, match=r"did you mean 'vector'.*vector, or package\.module:Class"):
        method_class("vectr")


def test_an_installed_method_is_not_looked_for_in_the_current_folder(on_path: Path) -> None:
    """A file there must not stand in for the package's."""
    (on_path.parent / "single.py").write_text(toy_source())
    install(on_path, "far-away", {"vector": "single:Vector"})
    with pytest.raises(ValueError, match="no module 'single'"):
        method_class("vector")
    assert method_class("single:Vector").__name__ == "Vector"


def test_a_name_belongs_to_one(on_path: Path) -> None:
    """Raycl's own names, a name of two packages and a name that is none are errors that name the packages."""
    write_package(on_path)
    install(on_path, "far-away", {"o_lora": PLACE, "vector": PLACE, "Odd Name": PLACE})
    install(on_path, "further", {"vector": PLACE})
    with pytest.raises(ValueError, match=r"far-away 1\.2 brings a method called 'o_lora', which raycl has itself"):
        method_class("o_lora")
    with pytest.raises(ValueError, match=r"far-away 1\.2 and further 1\.2|further 1\.2 and far-away 1\.2"):
        method_class("vector")
    with pytest.raises(ValueError, match=r"'Odd Name' of far-away 1\.2 is no name for a method"):
        method_class("Odd Name")
    assert method_class("ewc") and method_class(PLACE)


def test_the_hash_covers_what_the_module_imports_from_its_folder(tmp_path: Path) -> None:
    """By hand: the sorted modules, each with its size. A file that is not imported has no part in it."""
    package = tmp_path / "a"
    (package / "b").mkdir(parents=True)
    files = {
        "a": ("__init__.py", "x = 1\n"),
        "a.b": ("b/__init__.py", ""),
        "a.b.m": ("b/m.py", "def f():\n    from .. import n\n    import beside.inner\nimport torch, raycl\n"),
        "a.n": ("n.py", "from .b import m as other\nfrom . import (\n    k,\n)\n"),
        "a.k": ("k.py", "def broken(:\n"),
        "beside.inner": ("../beside/inner.py", ""),
    }
    (tmp_path / "beside").mkdir()
    for path, text in files.values():
        (package / path).write_text(text)
    (package / "test_m.py").write_text("import a.b.m\n")
    digest = hashlib.sha256()
    for name, (_, text) in sorted(files.items()):
        digest.update(f"{name} {len(text)}\n".encode() + text.encode())
    assert source_hash("a.b.m", tmp_path) == digest.hexdigest()
    (package / "test_m.py").write_text("import a.b.m  # other\n")
    assert source_hash("a.b.m", tmp_path) == digest.hexdigest()
    for path, text in files.values():
        (package / path).write_text(text + "#\n")
        assert source_hash("a.b.m", tmp_path) != digest.hexdigest(), path
        (package / path).write_text(text)


def test_of_an_installed_package_only_itself_counts(tmp_path: Path) -> None:
    """Its neighbours in the folder of installed packages are the environment's."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "mine.py").write_text("import theirs\n")
    before = source_hash("mine", folder)
    (folder / "theirs.py").write_text("x = 1\n")
    assert source_hash("mine", folder) == before
    (tmp_path / "mine.py").write_text("import theirs\n")
    (tmp_path / "theirs.py").write_text("x = 1\n")
    assert source_hash("mine", tmp_path) != before


def test_a_source_that_changed_under_the_program_is_refused(here: Path) -> None:
    """What runs is what was imported; what is on the disk would name it."""
    sizes = write_package(here)
    known = identity(PLACE)
    sizes.write_text("SIZE = 2.0\n")
    assert method_class(PLACE), "a sequence under way goes on"
    with pytest.raises(ValueError, match="has changed since this program imported it"):
        identity(PLACE)
    sizes.write_text("SIZE = 1.0\n")
    assert identity(PLACE) == known
