"""Whatever lies in a file that raycl reads, it is read or refused in words: no other error, no code, no hang.

Manifests and data in the published layouts are drawn at random beside their own tests; here are streams, tables of
one's own, specs, and all other records of a store.
"""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raycl.errors import DataError, SpecError, StoreError, UserError
from raycl.methods.registry import method_params
from raycl.sections import DataSpec
from raycl.spec import parse
from raycl.state.keys import key_folder
from raycl.state.store import Store
from raycl.tasks.catalogue import parse_stream
from raycl.tasks.load import load_tasks
from raycl.use.heads import find_head
from tests.kit.state_samples import make_part, publish

DRAWN = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=400)
MOST = 64 << 20
"""Bytes that reading one small file may take."""
KEY = "ab" * 32
WORDS = st.sampled_from(
    ["text", "label", "mine", "sst2", "rows.csv", "../x", "/etc/passwd", "{{ text }}", "{{ text.__class__ }}", "os:system",
     "from_data", "hub", "a/b", "", "no", "\u202e", "\x00", "1e400", "exact_match", "rouge_l"],
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
TASK: dict[str, Any] = {
    "name": "mine", "data": {"train": "rows.csv", "test": "rows.csv"}, "input": "text", "answer": "label",
    "labels": ["a", "b"],
}  # fmt: skip
FIELDS = st.sampled_from(
    ["name", "data", "input", "answer", "answers", "labels", "metric", "aliases", "drop", "values", "weight", "prompt",
     "run", "split", "chat", "messages", "category", "use", "max_answer_tokens", "train_examples", "other_names", "new"],
)  # fmt: skip


def damaged(whole: bytes, cut: int, length: int, new: bytes) -> bytes:
    """The bytes with some of them replaced."""
    start = cut % (len(whole) + 1)
    return whole[:start] + new + whole[start + length :]


CHANGE = {"cut": st.integers(0, 10**5), "length": st.integers(0, 40), "new": st.binary(max_size=40)}


@DRAWN
@given(changes=st.dictionaries(FIELDS, VALUES, max_size=3), more=st.dictionaries(WORDS, VALUES, max_size=1))
def test_any_stream_is_one_or_a_spec_error(changes: dict[str, Any], more: dict[str, Any]) -> None:
    """Fields with any values, fields that there are not."""
    text = yaml.safe_dump({"stream": "own", "tasks": [TASK | changes], **more}, allow_unicode=True)
    try:
        parse_stream(text, "s.yaml")
    except SpecError as error:
        assert "s.yaml" in str(error)


@DRAWN
@given(**CHANGE)
def test_any_text_is_a_stream_or_a_spec_error(cut: int, length: int, new: bytes) -> None:
    """A stream with any piece of it replaced."""
    whole = yaml.safe_dump({"stream": "own", "tasks": [TASK]}).encode()
    try:
        parse_stream(damaged(whole, cut, length, new).decode("utf-8", "replace"), "s.yaml")
    except SpecError as error:
        assert "s.yaml" in str(error)


SECTIONS = [
    "order",
    "tasks",
    "model",
    "data",
    "method",
    "train",
    "eval",
    "seed",
    "workers",
    "groups",
    "imported",
    "new",
]


@DRAWN
@given(st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=4))
def test_any_spec_is_one_or_a_spec_error(changes: dict[str, Any]) -> None:
    """Sections with any values."""
    base: dict[str, Any] = {"order": "x", "tasks": ["a"], "method": {"name": "o_lora"}}
    try:
        parse(base | changes, method_params)
    except SpecError as error:
        assert "problem" in str(error)


@DRAWN
@given(spec=VALUES, summary=VALUES, keys=VALUES)
def test_any_run_folder_is_one_or_a_user_error(spec: Any, summary: Any, keys: Any) -> None:
    """What another program left as spec.json and summary.json."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spec.json").write_text(json.dumps(spec))
        facts = summary | {"stage_keys": keys} if isinstance(summary, dict) else summary
        Path(folder, "summary.json").write_text(json.dumps(facts))
        with pytest.raises(UserError):
            find_head(folder, str(Path(folder, "store")))


def rows_of(name: str, data: bytes) -> None:
    """Read a task of one's own from a file with these bytes: it is one, or a DataError that names the next step."""
    with tempfile.TemporaryDirectory() as folder:
        task = TASK | {"data": {"train": name, "test": name}}
        stream = Path(folder, "s.yaml")
        stream.write_text(yaml.safe_dump({"stream": "own", "tasks": [task]}))
        Path(folder, name).write_bytes(data)
        try:
            load_tasks(["mine"], DataSpec(stream=str(stream), source=folder))
        except DataError as error:
            assert "next step" in str(error) or "problem" in str(error)


ROWS = {"text": ["good", "bad", "fine"], "label": ["a", "b", "a"]}


def packed(write: Callable[[Any, Any], object]) -> bytes:
    """ROWS as a file of columns."""
    sink = pa.BufferOutputStream()
    write(pa.table(ROWS), sink)
    return sink.getvalue().to_pybytes()


TABLES = {
    "rows.csv": b'text,label\n"good, and more",a\nbad,b\n',
    "rows.tsv": b"text\tlabel\ngood\ta\nbad\tb\n",
    "rows.jsonl": b'{"text": "good", "label": "a"}\n{"text": "bad", "label": "b"}\n',
    "rows.json": b'[{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}]',
    "rows.parquet": packed(pyarrow.parquet.write_table),
    "rows.feather": packed(pyarrow.feather.write_feather),
}


@pytest.mark.parametrize("name", TABLES)
@settings(DRAWN, max_examples=150)
@given(**CHANGE)
def test_any_table_is_a_task_or_a_data_error(name: str, cut: int, length: int, new: bytes) -> None:
    """Every format, with any piece replaced."""
    rows_of(name, damaged(TABLES[name], cut, length, new))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one of each record."""
    made = Store(str(tmp_path_factory.mktemp("fuzz") / "store"))
    publish(made)
    made.write_scores(KEY, {"score": 50.0}, [{"prediction": "a"}])
    made.write_partial(KEY, {"x": torch.zeros(3)}, {"step": 4})
    return made


def records(store: Store) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Each kind of record: its file, and what reads it."""
    branch = make_part(1).branch
    assert branch is not None
    taken = store.write_import(branch, "base")
    root = Path(store.uri)
    (tensors,) = (root / key_folder("partial", KEY)).glob("*.safetensors")
    (predictions,) = (root / key_folder("scores", KEY)).rglob("predictions.jsonl")
    return {
        "marker": (root / "raycl-store.json", lambda: Store(store.uri).check_usable()),
        "scores": (root / key_folder("scores", KEY) / "scores.json", lambda: store.read_scores(KEY)),
        "predictions": (predictions, lambda: store.read_predictions(KEY)),
        "checkpoint": (root / key_folder("partial", KEY) / "partial.json", lambda: store.read_partial(KEY)),
        "tensors": (tensors, lambda: store.read_partial(KEY)),
        "import": (root / key_folder("imported", taken) / "base.json", lambda: store.read_import(taken)),
    }


@pytest.mark.parametrize("kind", ["marker", "scores", "predictions", "checkpoint", "tensors", "import"])
@settings(DRAWN, max_examples=150)
@given(**CHANGE)
def test_any_record_is_what_was_written_or_a_store_error(
    store: Store, kind: str, cut: int, length: int, new: bytes
) -> None:
    """A checkpoint that is damaged is none; all else is refused, and a message never says to delete the store."""
    path, read = records(store)[kind]
    whole = path.read_bytes()
    changed = damaged(whole, cut, length, new)
    path.write_bytes(changed)
    try:
        found = read()
        assert changed == whole or found is None
        assert kind in ("checkpoint", "tensors") or changed == whole
    except StoreError as error:
        assert changed != whole
        assert kind != "marker" or "elete" not in str(error)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("header", [2**63, 2**40, 10**9, 2**31])
def test_a_forged_length_takes_no_memory(store: Store, header: int) -> None:
    """A file of tensors whose header says that it is huge."""
    path, read = records(store)["tensors"]
    whole = path.read_bytes()
    path.write_bytes(header.to_bytes(8, "little") + whole[8:])
    tracemalloc.start()
    assert read() is None
    assert tracemalloc.get_traced_memory()[1] < MOST
    tracemalloc.stop()
    path.write_bytes(whole)
