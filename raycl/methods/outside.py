"""Methods that live outside of raycl: by `package.module:Class`, or by the entry point of an installed package.

It runs code that the user named or installed, and nothing else. A module is looked for where Python looks, and last in the
current folder, so that a file there never stands in for a library.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

from raycl.files import reach
from raycl.methods.sources import source_hash
from raycl.spec import MethodParams

if TYPE_CHECKING:
    from raycl.methods.common.base import Method

GROUP = "raycl.methods"
"""The entry points that packages name their methods in."""
PLACE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Outside:
    """A method from outside of raycl."""

    method: type[Method]
    place: str
    """`package.module:Class` where the class is defined, whatever the user called it."""
    folder: Path
    """Where its top-level package lies: what another process must look in to import it."""
    source: str
    """The hash of its source when it was imported."""

    def unchanged_source(self) -> str:
        """The hash of the source that runs. Raises ValueError if the files have changed since they were imported."""
        if source_hash(self.place.partition(":")[0], self.folder) != self.source:
            raise ValueError(
                f"the source of {self.place} in {self.folder} has changed since this program imported it, so that nobody "
                "knows what would run; start the program again, or reload the method's module"
            )
        return self.source


_IMPORTED: dict[type, Outside] = {}
"""What was imported in this process; a module that is reloaded makes a new class."""


@dataclass(frozen=True)
class Installed:
    """A method that an installed package brings, not yet imported."""

    name: str
    place: str
    package: str
    """Name and version."""


def installed() -> dict[str, list[Installed]]:
    """The methods of installed packages by name; a name that more than one package claims is none's."""
    return _installed(tuple(sys.path))


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> dict[str, list[Installed]]:
    """Reading what is installed takes long enough to do it once; `path` is where it was read."""
    found: dict[str, list[Installed]] = {}
    for point in metadata.entry_points(group=GROUP):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
        found.setdefault(point.name, []).append(Installed(point.name, point.value.strip(), package))
    return found


def claimed(name: str, built_in: Iterable[str]) -> Installed | None:
    """The installed method of this name; none if no package brings it.

    Raises ValueError for a name that raycl has itself, that two packages bring, or that is no name for a method.
    """
    claims = installed().get(name, [])
    if not claims:
        return None
    packages = " and ".join(one.package for one in claims)
    if name in built_in:
        raise ValueError(
            f"the installed package {packages} brings a method called {name!r}, which raycl has itself; uninstall the "
            f"package, or rename its entry point in the group {GROUP}"
        )
    if len(claims) > 1:
        raise ValueError(
            f"{packages} both bring a method called {name!r}; uninstall one of them, or name the class: {claims[0].place}"
        )
    if not NAME.fullmatch(name):
        raise ValueError(
            f"the entry point {name!r} of {packages} is no name for a method: lower-case letters, digits and _, a letter "
            f"first; rename it in the group {GROUP}, or name the class: {claims[0].place}"
        )
    return claims[0]


def at(place: str, name: str | None = None) -> Outside:
    """The method at `package.module:Class`, imported; `name` is what an installed package calls it.

    Without a name it is also looked for in the current folder.

    Raises ValueError that says what is wrong with it and what to do.
    """
    parts = PLACE.fullmatch(place)
    if parts is None:
        raise ValueError(f"{place!r} names no class: expected package.module:Class, such as my_methods.ema:Ema")
    if name is None:
        reach([os.getcwd()])
    module = _module(place, parts["module"])
    method = _method(module, parts["name"])
    require_name(method.Params, name or place)
    if method not in _IMPORTED:
        home, folder = method.__module__, _folder(module)
        _IMPORTED[method] = Outside(method, f"{home}:{method.__qualname__}", folder, source_hash(home, folder))
    return _IMPORTED[method]


def _module(place: str, name: str) -> ModuleType:
    """Import a module. Raises ValueError that names the line at which it fails."""
    importlib.invalidate_caches()  # it may have been written by this very process
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{place}: there is no module {error.name!r} in {os.getcwd()}, nor where Python looks; run the command in "
                f"the folder that holds {name.partition('.')[0]!r}, or install it (`pip install -e FOLDER`)"
            ) from None
        raise ValueError(
            f"{place}: the module {name} cannot be imported: {type(error).__name__}: {error} ({_where(error)}); mend it and "
            "run the command again"
        ) from error


def _where(error: Exception) -> str:
    """File and line at which an import failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}"


def _method(module: ModuleType, name: str) -> type[Method]:
    """The class of a method in a module. Raises ValueError if it is none, or not a whole one."""
    from raycl.methods.common.base import About, Method

    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    }
    where = f"{module.__name__} ({module.__file__})"
    if not hasattr(module, name):
        raise ValueError(f"{where} has no {name!r}; {_methods_of(own)}")
    found = getattr(module, name)
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise ValueError(f"{name} of {where} is no method: derive it from raycl.Method; {_methods_of(own)}")
    if found.__module__.partition(".")[0] != module.__name__.partition(".")[0]:
        raise ValueError(f"{name} of {where} comes from another package: name it there, {found.__module__}:{name}")
    if inspect.isabstract(found):
        raise ValueError(
            f"{name} of {where} is not a whole method: it lacks {', '.join(sorted(found.__abstractmethods__))}"
        )
    for attribute, kind in (("Params", MethodParams), ("about", About)):
        value = getattr(found, attribute, None)
        if not (isinstance(value, kind) or (inspect.isclass(value) and issubclass(value, kind))):
            raise ValueError(f"{name} of {where} has no {attribute!r}: set it to a {kind.__module__}.{kind.__name__}")
    return found


def _methods_of(own: Mapping[str, Any]) -> str:
    return f"methods there: {', '.join(own)}" if own else "there is no method in it"


def require_name(params: type[MethodParams], name: str) -> None:
    """Raise ValueError if hyper-parameters have a fixed name that is another one than the user's."""
    allowed = get_args(params.model_fields["name"].annotation)
    if allowed and name not in allowed:
        raise ValueError(
            f"the field `name` of {params.__name__} takes {', '.join(map(repr, allowed))} only, not {name!r}; leave the "
            "field out: it then takes what the user wrote"
        )


def _folder(module: ModuleType) -> Path:
    """The folder that holds a module's top-level package. Raises ValueError for a module without a file of its own."""
    file = Path(module.__file__ or "")
    if file.suffix != ".py" or module.__name__ == "__main__":
        raise ValueError(
            f"the module {module.__name__} is no Python file that other processes can import; put the class into a file of "
            "its own, such as my_method.py, and name it my_method:Class"
        )
    depth = len(module.__name__.split(".")) + (file.name == "__init__.py")
    return file.resolve().parents[depth - 1]
