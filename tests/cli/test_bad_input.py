"""Bad input through the real command line: exit code 2, one message that says where, what, what is allowed and "
"what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import QUOTED
from tests.kit.bad import data, flags, stores, streams, verbs
from tests.kit.bad.form import Bad
from tests.kit.cli import invoke
from tests.kit.layout_files import WRITERS

ROWS = [*flags.ROWS, *streams.ROWS, *data.ROWS, *stores.ROWS, *verbs.ROWS]
LEAST = 150
GUIDES = (
    r"(?i)allowed|next step|expected|did you mean|give|set |see |should|must|try |raycl |install|check|choose|unknown"
    r"|no such|cannot|take |name |say |save|docs/|--help|argument|lists are"
)
"""A message has at least one of these words: what is allowed, or what to do."""
LONGEST = 8_000
"""Characters of a message; the longest is the one that lists all tasks of all orders."""


@pytest.fixture
def places(tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where things are; nothing reaches a network, and nothing may be started."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")  # quiet mode would silence the other tests' loggers as well
    monkeypatch.setenv("RAYCL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("raycl.sequence.chronicle.Chronicle.start", _never)
    (tmp_path / "own").mkdir()
    root = WRITERS["benchmark"](tmp_path)
    names = {"tmp": tmp_path / "own", "data": root, "store": tmp_path / "store", "home": tmp_path / "home"}
    return {name: str(path) for name, path in names.items()} | {"model": str(tiny_folders["llama"])}


def _never(*arguments: Any) -> None:
    raise AssertionError("the sequence was started")


def filled(text: str, places: dict[str, str]) -> str:
    """A text with the places put in."""
    return re.sub(r"\{(tmp|data|model|store|home)\}", lambda found: places[found[1]], text)


@pytest.mark.parametrize("bad", ROWS, ids=[f"{number}-{row.name}" for number, row in enumerate(ROWS)])
def test_bad_input_is_one_message(bad: Bad, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, nothing on standard output, and the words on standard error; short, printable, without a traceback."""
    for name, content in bad.files.items():
        path = Path(places["tmp"], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, value in bad.environment.items():
        monkeypatch.setenv(name, filled(value, places))
    result = invoke(bad.verb, [filled(one, places) for one in bad.arguments])
    assert result.code == 2, (result.code, result.output[-3000:])
    assert "Traceback" not in result.output and "defect" not in result.output
    for word in bad.words:
        assert filled(word, places) in result.stderr
    assert re.search(GUIDES, result.stderr)
    assert len(result.stderr) < LONGEST
    assert all(one.isprintable() or one == "\n" for one in result.stderr)
    assert not any(len(one) > QUOTED and one[: QUOTED + 1] in result.stderr for one in bad.arguments)


def test_the_table_is_long_enough_and_repeats_nothing() -> None:
    """At least 150 different inputs."""
    assert len({(row.verb, *row.arguments, *map(str, row.files.items())) for row in ROWS}) == len(ROWS) >= LEAST
