"""Whatever stands in a data file, loading gives tasks or a DataError."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raycl.errors import DataError
from raycl.sections import DataSpec
from raycl.tasks.load import load_tasks
from tests.kit.layout_files import WRITERS

FILES = {
    "benchmark": "sst2/train.jsonl.gz",
    "o-lora": "SC/SST-2/train.json",
    "gainlora": "Long_Sequence/sst2/train.json",
}
TEXT = st.one_of(st.text(max_size=8), st.sampled_from(["Good", "Bad", "-", "\ud800", "{0}", "Text: a"]))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["label", "sentence", "input", "output", "definition", "Definition", "Instances", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def try_to_load(layout: str, data: bytes, target: str | None = None) -> None:
    """Put the bytes into a file of a task that is otherwise sound, and load it."""
    with tempfile.TemporaryDirectory() as folder:
        root = WRITERS[layout](Path(folder))
        (root / (target or FILES[layout])).write_bytes(data)
        try:
            (task,) = load_tasks(["sst2"], DataSpec(source=folder, train_examples=2))
        except DataError as error:
            assert "next step:" in str(error)
        else:
            assert task.train_fingerprint
            assert json.dumps(task.record)


@pytest.mark.parametrize("layout", list(FILES))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=200))
@example(data=b"\x1f\x8b\x08\x00")
@example(data=b"[" * 50_000)
@example(data=b"\x00")
def test_random_bytes(layout: str, data: bytes) -> None:
    try_to_load(layout, data)
    if layout == "benchmark":
        try_to_load(layout, gzip.compress(data))


@pytest.mark.parametrize("layout", list(FILES))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=ANYTHING)
def test_random_json(layout: str, value: Any) -> None:
    data = json.dumps(value).encode()
    try_to_load(layout, gzip.compress(data) if layout == "benchmark" else data)


@pytest.mark.parametrize("layout", list(FILES))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=ANYTHING)
def test_random_labels(layout: str, value: Any) -> None:
    labels = str(Path(FILES[layout]).parent / "labels.json")
    try_to_load(layout, json.dumps(value).encode(), labels)
