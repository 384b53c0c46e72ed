"""A stage remembers what it was trained on, and is found out where that is not what is stored any more."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from raycl.errors import StoreError
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.job import make_job
from raycl.sequence.resolve import resolve
from raycl.state.keys import key_folder
from raycl.state.manifest import Provenance
from raycl.state.store import Store
from tests.kit.cli import invoke
from tests.kit.runs import MakeFlags, digests
from tests.kit.state_samples import make_part


def publish(store: Store, stage: int, number: int, parent: str | None = None, **more: object) -> str:
    """A stage with the numbers of sample `number`; its key."""
    digest = store.manifest(parent).digest if parent else None
    recipe = {"stage": stage, "parent": parent}
    return store.publish(make_part(number), Provenance(recipe, stage, parent, parent_digest=digest, **more)).key


@pytest.fixture
def drifted(tmp_path: Path) -> tuple[Store, str, str]:
    """Two stages, of which the first was lost and made again with other numbers, under another version of torch."""
    store = Store(str(tmp_path / "store"))
    first = publish(store, 1, 1, environment={"torch": "2.15.0"})
    second = publish(store, 2, 2, first, environment={"torch": "2.15.0"})
    assert store.drift(second) is None and store.verify() == []
    shutil.rmtree(Path(store.uri) / key_folder("stages", first))
    assert publish(store, 1, 3, environment={"torch": "2.16.0"}) == first
    return store, first, second


def test_verify_and_reading_name_both_digests_and_what_differed(
    drifted: tuple[Store, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    store, first, second = drifted
    (problem,) = store.verify()
    child, parent = store.manifest(second), store.manifest(first)
    for words in (child.parent_digest[:12], parent.digest[:12], "torch 2.15.0 then, 2.16.0 now", "--on-drift rebuild"):
        assert words in problem
    with caplog.at_level(logging.WARNING, "raycl"):
        store.read_state(second)
    assert "came out otherwise" in caplog.text


def test_a_stage_that_recorded_no_digest_is_read_as_before(tmp_path: Path) -> None:
    """Stores of earlier versions."""
    store = Store(str(tmp_path / "store"))
    first = publish(store, 1, 1)
    second = store.publish(make_part(2), Provenance({"stage": 2, "parent": first}, 2, first)).key
    shutil.rmtree(Path(store.uri) / key_folder("stages", first))
    publish(store, 1, 3)
    assert store.drift(second) is None and store.verify() == []


def test_where_a_model_lies_is_no_part_of_a_state(flags: MakeFlags, tmp_path: Path) -> None:
    """The same model in two folders: the same keys and the same digests."""
    found = []
    for name in ("here", "there"):
        model = shutil.copytree(flags.models["llama"], tmp_path / name)
        fields = flags.spec("gain_o", "llama") | {"order": "roget", "eval": {"forward": False}}
        fields["model"] = {"name": str(model), "precision": "fp32"}
        store = tmp_path / f"store-{name}"
        run_sequence(resolve("laptop", [fields], 0), Options(str(store), "off", output=str(tmp_path / "out")), [])
        found.append(digests(store))
    assert found[0] == found[1] and len(found[0]) == 1


ORDER = "roget,snippets,plots"


@pytest.fixture
def moved_on(flags: MakeFlags, tmp_path: Path) -> tuple[Path, dict[str, object], dict[str, str]]:
    """The store of a sequence whose first stage was replaced by one of other numbers; the spec, and the digests before."""
    store, fields = tmp_path / "store", flags.spec("sin_lora", "llama") | {"order": ORDER}
    spec = resolve("laptop", [fields], 0)
    options = Options(str(store), "off", output=str(tmp_path / "out"))
    run_sequence(spec, options, [])
    before = digests(store)
    opened = Store(str(store))
    first = make_job(spec, opened).plan.stages[0].key
    found = opened.manifest(first)
    part = opened.read(first)
    shutil.rmtree(store / key_folder("stages", first))
    other = type(part)(part.task, _doubled(part.branch), part.tensors, part.facts)
    opened.publish(
        other, Provenance(found.recipe, 1, environment=found.environment, runtime=found.runtime, log=found.log)
    )
    return store, fields, before


def _doubled(branch):
    return type(branch)(branch.rank, branch.alpha, branch.a, {path: 2 * b for path, b in branch.b.items()})


def test_a_run_fails_accepts_or_rebuilds(
    moved_on: tuple[Path, dict[str, object], dict[str, str]], tmp_path: Path
) -> None:
    """By default nothing is trained or shown; rebuilt stages stand on the first as it is now, the old ones lie aside."""
    store, fields, before = moved_on
    spec, options = resolve("laptop", [fields], 0), Options(str(store), "off", output=str(tmp_path / "out"))
    with pytest.raises(StoreError, match=r"came out otherwise[\s\S]*--on-drift rebuild"):
        run_sequence(spec, options, [])
    accepted = run_sequence(spec, Options(str(store), "off", output=str(tmp_path / "out"), on_drift="accept"), [])
    assert accepted.trained == []
    rebuilt = run_sequence(spec, Options(str(store), "off", output=str(tmp_path / "out"), on_drift="rebuild"), [])
    assert rebuilt.trained == [2, 3]
    opened = Store(str(store))
    keys = [stage.key for stage in make_job(spec, opened).plan.stages]
    assert opened.verify() == [] and opened.drift(keys[-1]) is None
    assert [digests(store)[key] == before[key] for key in keys] == [False, False, False]
    assert len(list((store / "aside" / "stages").iterdir())) == 2
    assert run_sequence(spec, options, []).trained == []


def test_the_command_line_says_so(
    moved_on: tuple[Path, dict[str, object], dict[str, str]],
    flags: MakeFlags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, _, _ = moved_on
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    arguments = [*flags(store, "sin_lora", "llama", ORDER), "--tracking", "off"]
    refused = invoke("run", arguments)
    assert (refused.code, "--on-drift accept" in refused.stderr) == (2, True), refused.output
    assert invoke("run", [*arguments, "--on-drift", "accept"]).code == 0
    assert invoke("store", ["verify", "--store", str(store)]).code != 0


def test_a_stage_that_a_run_makes_again_otherwise_stops_it_before_what_follows_is_shown(
    flags: MakeFlags, tmp_path: Path
) -> None:
    """The second stage is lost; the third, on whose like it once stood, was trained on other numbers."""
    store = Store(str(tmp_path / "store"))
    fields = flags.spec("sin_lora", "llama") | {"order": ORDER}
    spec, options = resolve("laptop", [fields], 0), Options(store.uri, "off", output=str(tmp_path / "out"))
    run_sequence(spec, options, [])
    _, second, third = (stage.key for stage in make_job(spec, store).plan.stages)
    found, part = store.manifest(third), store.read(third)
    for key in (second, third):
        shutil.rmtree(Path(store.uri) / key_folder("stages", key))
    stands_on = {"parent_digest": "0" * 64, "runtime": found.runtime, "log": found.log}
    store.publish(part, Provenance(found.recipe, 3, second, **stands_on))
    with pytest.raises(StoreError, match=r"digest 000000000000 of stage 2 .*--on-drift rebuild"):
        run_sequence(spec, options, [])
    rebuilt = run_sequence(spec, Options(store.uri, "off", output=str(tmp_path / "out"), on_drift="rebuild"), [])
    assert rebuilt.trained == [3] and store.verify() == []
