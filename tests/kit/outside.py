"""Methods that lie outside of the repository: written into a folder, and forgotten by this process again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.places import ROOT

PLACE = "far_methods.vector:Vector"
"""What `write_package` writes."""


def toy_source(*, fixed_name: bool = False) -> str:
    """The source of the toy method as the class Vector; its hyper-parameters keep their `fixed_name`, or take any."""
    text = (ROOT / "tests" / "kit" / "toy_method.py").read_text().replace("ToyMethod", "Vector")
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if fixed_name or "Literal[" not in line)


def write_package(folder: Path, source: str | None = None, size: float = 1.0) -> Path:
    """The package far_methods with the toy method in `vector.py`, which takes a factor `size` from its neighbour `sizes.py`.

    Returns the file of the neighbour.
    """
    package = folder / "far_methods"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text('"""Methods far away."""\n')
    code = source or toy_source()
    code = code.replace("\nimport torch\n", "\nimport torch\nfrom far_methods.sizes import SIZE\n", 1)
    (package / "vector.py").write_text(code.replace("* self.params.size", "* self.params.size * SIZE"))
    (package / "sizes.py").write_text(f"SIZE = {size}\n")
    return package / "sizes.py"


def install(folder: Path, package: str, entries: dict[str, str]) -> None:
    """What an installer leaves of a package in `folder`, which is on the path: its name, version and entry points."""
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = ["[raycl.methods]", *(f"{name} = {place}" for name, place in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@contextmanager
def forgotten(*packages: str) -> Iterator[None]:
    """What is imported of these packages, and put on the path, in the body is gone after it."""
    path, before = sys.path, list(sys.path)
    try:
        yield
    finally:
        path[:] = before
        sys.path = path
        forget(*packages)


def forget(*packages: str) -> None:
    """As in a program that has just started, these packages are not imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
