"""A stage is stored or absent: killed at any step of writing, by a full disk, or with rivals at the same key."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from raycl.errors import StoreError
from raycl.state.files import Files
from raycl.state.keys import content_key
from raycl.state.store import Store
from tests.kit.state_samples import make_part, publish, same_part, snapshot

# Every step that can change what is on disk.
STEPS = ["fsync", "replace", "link", "unlink", "makedirs", "open"]
KEY = content_key({"row": 1})


@contextmanager
def at_call(step: str, number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Call `act` in place of the `number`-th call of `os.<step>`; gives the list of calls seen."""
    real, calls = getattr(os, step), []

    def fake(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            act()
        return real(*arguments, **options)

    setattr(os, step, fake)
    try:
        yield calls
    finally:
        setattr(os, step, real)


def in_child(work: Callable[[], Any]) -> int:
    """Start `work` in a forked process, which ends at once, with no clean-up, when it is done; its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def exit_code(child: int) -> int:
    """The exit code of a child process."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_points(work: Callable[[], Any]) -> Iterator[tuple[str, int]]:
    """Run `work` in children killed at every step in turn; gives each point after its child is dead."""

    def killed(step: str, number: int) -> None:
        with at_call(step, number, lambda: os._exit(9)):
            work()

    for step in STEPS:
        number = 1
        while exit_code(in_child(lambda step=step, number=number: killed(step, number))) == 9:
            yield step, number
            number += 1


def test_killed_at_any_step_a_stage_is_absent_or_whole(tmp_path: Path) -> None:
    points = 0
    roots = iter(tmp_path / str(number) for number in range(1000))
    place = {"root": next(roots)}
    for step, number in kill_points(lambda: publish(Store(str(place["root"])))):
        points += 1
        store = Store(str(place["root"]))
        for key in store.stage_keys():
            assert same_part(store.read(key), make_part(1)), (step, number)
        again = publish(store)
        assert same_part(store.read(again.key), make_part(1)) and store.verify() == [], (step, number)
        place["root"] = next(roots)
    assert points >= 20


@pytest.mark.parametrize("step", ["fsync", "replace", "link", "makedirs"])
def test_a_failing_disk_is_an_error_and_leaves_nothing_half(tmp_path: Path, step: str) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    number = 1
    while True:
        store = Store(str(tmp_path / str(number)))
        with at_call(step, number, full) as calls:
            try:
                publish(store)
            except StoreError as error:
                assert "No space left" in str(error) and store.uri in str(error)
        assert publish(store) and store.verify() == []
        assert not [name for name in snapshot(Path(store.uri)) if "tmp" in name]
        if len(calls) < number:
            return
        number += 1


def test_bytes_that_did_not_reach_the_disk_are_found_before_the_manifest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Files.write

    def lossy(files: Any, name: str, data: bytes) -> None:
        real(files, name, data[:-1] if name.endswith("adapter_model.safetensors") else data)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "write", lossy)
        with pytest.raises(StoreError, match=r"adapter_model\.safetensors"):
            publish(store)
    assert store.stage_keys() == []
    assert same_part(store.read(publish(store).key), make_part(1))


@pytest.mark.parametrize("step", ["write", "read", "create"])
def test_stopped_between_steps(store: Store, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Stopped before the contents are written, before they are read again, and before the manifest is made."""
    real = getattr(Files, step)

    def interrupt(files: Files, name: str, *more: Any) -> Any:
        if name.startswith("stages/"):
            raise KeyboardInterrupt
        return real(files, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Files, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            publish(store)
    assert store.stage_keys() == []
    assert same_part(store.read(publish(store).key), make_part(1))


def test_rivals_at_one_key_agree_on_the_first(tmp_path: Path) -> None:
    """Four writers with different results, released at once: all end with one manifest, and it never changes."""

    def rival(root: Path, number: int, gate: int) -> None:
        os.read(gate, 1)
        store = Store(str(root))
        manifest = publish(store, part=make_part(number))
        (tmp_path / f"{root.name}-{number}").write_text(manifest.digest)

    for attempt in range(10):
        root = tmp_path / f"store{attempt}"
        gate, opener = os.pipe()
        children = [in_child(lambda number=number: rival(root, number, gate)) for number in range(4)]  # noqa: B023
        os.write(opener, b"go!!")
        assert [exit_code(child) for child in children] == [0] * 4
        os.close(gate)
        os.close(opener)
        store = Store(str(root))
        digests = {(tmp_path / f"{root.name}-{number}").read_text() for number in range(4)}
        assert digests == {store.manifest(key).digest for key in store.stage_keys()} and len(digests) == 1
        assert store.verify() == []


def test_many_first_users_make_one_store(tmp_path: Path) -> None:
    def first_use(root: Path, gate: int) -> None:
        os.read(gate, 1)
        Store(str(root)).check_usable()

    for attempt in range(10):
        root = tmp_path / f"store{attempt}"
        gate, opener = os.pipe()
        children = [in_child(lambda: first_use(root, gate)) for _ in range(4)]  # noqa: B023
        os.write(opener, b"go!!")
        assert [exit_code(child) for child in children] == [0] * 4
        os.close(gate)
        os.close(opener)
        assert list(snapshot(root)) == ["raycl-store.json"]


def test_without_hard_links_a_rename_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    assert same_part(store.read(publish(store).key), make_part(1))


def test_killed_while_writing_scores(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    Store(root).check_usable()
    for _ in kill_points(lambda: Store(root).write_scores(KEY, {"score": 0.5}, [{"id": "1"}])):
        store = Store(root)
        if store.has_scores(KEY):
            assert store.read_scores(KEY) == {"score": 0.5} and store.read_predictions(KEY) == [{"id": "1"}]
            shutil.rmtree(tmp_path / "store" / "scores")
    assert Store(root).read_scores(KEY) == {"score": 0.5}


def test_killed_while_replacing_a_checkpoint_the_old_or_the_new_one_is_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.write_partial(KEY, {"x": torch.zeros(3)}, {"step": 0})
    for _ in kill_points(lambda: Store(store.uri).write_partial(KEY, {"x": torch.ones(3)}, {"step": 1})):
        found = store.read_partial(KEY)
        assert found is not None
        assert torch.equal(found[0]["x"], torch.full((3,), float(found[1]["step"])))
        store.write_partial(KEY, {"x": torch.zeros(3)}, {"step": 0})
    assert store.read_partial(KEY)[1] == {"step": 1}
