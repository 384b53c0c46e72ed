"""Writes the skeleton of a method into a folder of the user's: a working method with its tests, to be changed from there."""

from __future__ import annotations

import keyword
from importlib.util import find_spec
from pathlib import Path
from string import Template

from raycl.errors import SpecError, shown
from raycl.files import write_text
from raycl.methods.outside import NAME
from raycl.methods.registry import is_known

FILES = Path(__file__).parent / "files"
"""The files of a skeleton, each with .txt at the end; $name, $class_name and $distribution stand for the method's."""


def new_method(name: str, folder: str | Path = ".") -> Path:
    """Write the folder `name` below `folder`: module `name`.py, its tests, pyproject.toml and README.md. Returns it.

    Raises SpecError for a name that no method can have, and for a folder that is there already.
    """
    home = Path(folder).expanduser().resolve() / name
    _require_form(name)
    if home.exists():
        raise SpecError(f"{home} is there already; give the method another name, or name another place with --folder")
    _require_free(name)
    words = {"name": name, "class_name": class_name(name), "distribution": name.replace("_", "-")}
    try:
        home.mkdir(parents=True)
        for path in sorted(FILES.glob("*.txt")):
            text = Template(path.read_text(encoding="utf-8")).substitute(words)
            write_text(home / path.name.removesuffix(".txt").replace("NAME", name), text)
    except OSError as error:
        raise SpecError(f"--folder {folder}: {home} cannot be written ({error}); name another place") from None
    return home


def class_name(name: str) -> str:
    """`my_method` as MyMethod."""
    return "".join(part.capitalize() for part in name.split("_"))


def _require_form(name: str) -> None:
    """A name is one that a module, and with a capital letter a class, can have."""
    if not NAME.fullmatch(name) or not class_name(name)[0].isalpha() or keyword.iskeyword(name):
        raise SpecError(
            f"NAME {shown(name)}: expected lower-case letters, digits and _, a letter first, such as my_method"
        )


def _require_free(name: str) -> None:
    """No method and no module has the name already."""
    if is_known(name):
        raise SpecError(
            f"NAME {shown(name)}: there is a method of this name already (`raycl methods`); choose another one"
        )
    found = find_spec(name)
    if (
        found is not None and found.origin is not None
    ):  # a bare folder of that name has no origin, and is in nobody's way
        raise SpecError(
            f"NAME {shown(name)}: Python has a module of this name ({found.origin}), which would be imported "
            f"instead; choose "
            "another one"
        )
