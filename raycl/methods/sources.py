"""The source that an outside method is made of, as one hash: what stage keys hold in place of raycl's own versions.

It covers the method's module and what that imports, by import statements anywhere in it, from the folder that holds its
top-level package: of a folder of the user's all modules there, of an installation's folder the same top-level package only.
What is read or imported in another way (data files, `importlib`) is not covered, and neither are other packages.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")
"""What folders of installed packages are called."""


def source_hash(module: str, folder: Path) -> str:
    """The SHA-256 (hex) of the files of `module` and of what it imports from `folder`, by name; every byte counts.

    Raises OSError if a file cannot be read.
    """
    found = hashlib.sha256()
    for name, content in sorted(_sources(module, folder).items()):
        found.update(f"{name} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()


def _sources(module: str, folder: Path) -> dict[str, bytes]:
    """Module -> the content of its file."""
    found: dict[str, bytes] = {}
    left = list(_with_parents(module))
    own = module.partition(".")[0]
    while left:
        name = left.pop()
        top = name.partition(".")[0]
        path = _file(name, folder)
        # raycl itself stands in keys by its schema and by the settings; other installed packages are the environment's.
        if name in found or path is None or top == "raycl" or (top != own and folder.name in INSTALLED):
            continue
        found[name] = path.read_bytes()
        left += _imported(found[name], name if path.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _file(name: str, folder: Path) -> Path | None:
    """The file of a module below `folder`; none if there is none."""
    base = folder.joinpath(*name.split("."))
    places = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((path for path in places if path.is_file()), None)


def _imported(content: bytes, package: str) -> Iterator[str]:
    """Every module that a file of `package` may import, with the packages above; one that cannot be read imports nothing."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # what is imported from a package may be a module of it
                yield from _with_parents(f"{target}.{alias.name}")


def _with_parents(name: str) -> Iterator[str]:
    """`a.b.c` as a, a.b, a.b.c: importing a module runs the packages above it."""
    parts = [part for part in name.split(".") if part]
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
