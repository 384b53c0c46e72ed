"""Reading what users give within bounds: a small file must not fill the memory. Each limit has a name and can be changed.

What is found is a `ValueError` whose text says what is wrong; whoever reads names the file. Knows `errors` only.
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from raycl.errors import SetupError, shown

MIB = 1 << 20
TEXT = ("RAYCL_READ_LIMIT", 256)
"""Mebibytes of text that are held as a whole: a JSON file, a line, a field, the rows of Parquet that are read together."""
YAML = ("RAYCL_YAML_LIMIT", 1)
"""Mebibytes of a YAML file."""
RATIO = 100
"""How many times its own size a compressed file may hold beyond the limit of texts. Text packs 3 to 20 times."""
DEPTH = 40
"""How deep YAML may be nested."""
NODES = 100_000
"""Values that YAML may hold, each counted as often as aliases repeat it."""


def limit_of(named: tuple[str, int]) -> int:
    """A limit in bytes: the environment's, else the default. Raises SetupError for one that is no whole number above 0."""
    name, default = named
    said = os.environ.get(name, "")
    if said and not (said.isascii() and said.isdigit() and 0 < int(said[:20]) < 1 << 40):
        raise SetupError(f"the environment's {name} is {shown(said)}; allowed: a whole number of MiB above 0")
    return (int(said) if said else default) * MIB


class TooLarge(ValueError):
    """Something is beyond a limit."""


def too_large(named: tuple[str, int], what: str = "is") -> TooLarge:
    """What is said of something beyond a limit."""
    return TooLarge(
        f"{what} larger than {limit_of(named) // MIB} MiB; next step: part it, or set {named[0]} to more MiB if you trust it"
    )


def read_bytes(path: Path, named: tuple[str, int] = TEXT) -> bytes:
    """A file as a whole. Raises OSError as reading does, TooLarge beyond the limit."""
    with path.open("rb") as file:
        return _within(file, named)


def read_text(path: Path, named: tuple[str, int] = TEXT) -> str:
    """A UTF-8 text file as a whole, with or without a byte order mark.

    Raises OSError as reading does, UnicodeDecodeError for other bytes, TooLarge beyond the limit.
    """
    return read_bytes(path, named).decode("utf-8-sig")


def unpack(data: bytes) -> bytes:
    """What a gzip file holds. Raises TooLarge beyond the limit; OSError, EOFError or zlib.error for a damaged one."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return _within(file, TEXT, "unpacks to something")


def unpacked_limit(packed: int) -> int:
    """Bytes that a compressed file of `packed` bytes may hold, where it is read piece by piece."""
    return max(limit_of(TEXT), RATIO * packed)


def _within(file: IO[bytes] | gzip.GzipFile, named: tuple[str, int], what: str = "is") -> bytes:
    most = limit_of(named)
    data = file.read(most + 1)
    if len(data) > most:
        raise too_large(named, what)
    return data


def parse_yaml(text: str) -> Any:
    """The plain value in a YAML text: no tags that make objects, each key once, nesting and repetition bounded.

    Raises ValueError that says what is wrong and where.
    """
    if len(text) > limit_of(YAML):
        raise too_large(YAML)
    with _in_words():
        return _Loader(text).get_single_data()


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({' '.join(str(error).split())[:200]})") from None
    except (ValueError, OverflowError, AttributeError) as error:  # a date that is none, an integer without an end
        raise ValueError(f"not valid YAML ({str(error)[:200]})") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, to which a key that stands twice is an error and not the later value, and which has bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As in YAML, but not deeper than `DEPTH` and not more than `NODES`, which a few aliases of aliases would be."""
        line, alias = self.peek_event().start_mark.line + 1, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.YAMLError(f"line {line}: nested more than {DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and id(node) not in self._sizes:
            if alias:
                raise yaml.YAMLError(f"line {line}: a value holds itself")
            self._sizes[id(node)] = self._size(node)
        if node is not None and self._sizes[id(node)] > NODES:
            raise yaml.YAMLError(f"line {line}: more than {NODES:,} values, aliases counted")
        return node

    def _size(self, node: yaml.Node) -> int:
        """The values in a node whose parts have been counted."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        return 1 + sum(self._sizes[id(part)] for part in parts)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in YAML, each key once."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # what it brings may be overridden
            key = self.construct_object(key_node, deep=True)
            try:
                twice = key in seen
            except TypeError:
                where = f"line {key_node.start_mark.line + 1}"
                raise yaml.YAMLError(f"{where}: a key is a list or a mapping; allowed: a text or a number") from None
            if twice:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {shown(key)} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)
