"""What a sweep asks for and saves, computed from stage keys; its order; its flags. No Ray, no training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raycl.cluster import capacity
from raycl.errors import SpecError
from raycl.sequence import job
from raycl.sequence.sharing import sharing, spread
from raycl.sweep.plan import SweepPlan, SweepRequest, SweepSettings, plan_sweep, sweep_settings
from raycl.sweep.record import SweepRecord, TrialRecord
from raycl.sweep.trials import TrialSettings, open_trial
from tests.kit.outside import PLACE, forget, forgotten, write_package

SPACES = Path(__file__).parents[2] / "tune_spaces"


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint without a model."""
    monkeypatch.setattr(job, "known_fingerprint", lambda model: "0" * 64)


def planned(
    space: Path, order: str, data: Path, fields: dict[str, object] | None = None, **settings: object
) -> SweepPlan:
    """A sweep's plan on small data, under further `fields` of the run spec."""
    layers = [{"order": order, "data": {"source": str(data), "train_examples": 6, "test_examples": 2}}, fields or {}]
    return plan_sweep(SweepRequest(SweepSettings(space=str(space), **settings), "laptop", layers), "/nowhere")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small tasks."""
    from tests.kit.tiny_texts import write_tasks

    return write_tasks(tmp_path_factory.mktemp("five"), ["agnews", "amazon", "dbpedia", "yahoo", "yelp"])


def test_a_tree_over_five_tasks_takes_363_stage_runs_of_1215(five: Path) -> None:
    """3 values of lambda per task: 3 + 9 + 27 + 81 + 243 different stages."""
    plan = planned(SPACES / "am_lora_tree.py", "agnews,amazon,dbpedia,yahoo,yelp", five, search="grid")
    counts = sharing(plan.keys, [])
    assert (plan.trials, counts.needed, counts.distinct, counts.trained) == (243, 1215, 363, 363)
    assert (counts.shared, counts.saved) == (852, 852)
    known = set(plan.keys[0])
    assert sharing(plan.keys, known).to_json() == {
        "needed": 1215, "distinct": 363, "stored": 5, "trained": 358, "shared": 852, "saved": 857
    }  # fmt: skip


def test_what_is_inert_at_stage_1_is_trained_once_there(five: Path) -> None:
    """O-LoRA's lambda1 acts from stage 2 on; lambda2 from stage 1."""
    plan = planned(SPACES / "o_lora.py", "agnews,amazon,dbpedia", five, search="grid")
    assert plan.trials == 15
    assert [len({keys[stage] for keys in plan.keys}) for stage in range(3)] == [3, 15, 15]


def test_a_trial_in_another_process_finds_a_method_of_the_users(
    five: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent of a sweep brings the folder of its method along; the source is part of what the sweep is."""
    sizes = write_package(tmp_path)
    (tmp_path / "space.py").write_text(f'BASE = {{"method.name": "{PLACE}"}}\nSPACE = {{"method.size": [0.1, 0.2]}}\n')
    with forgotten("far_methods"):
        monkeypatch.chdir(tmp_path)
        plan = planned(tmp_path / "space.py", "agnews,amazon", five)
        keys, name, sent = plan.keys, plan.name(), plan.trial.model_dump_json()
        forget("far_methods")
        monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
        monkeypatch.chdir("/")
        steppers = [open_trial(TrialSettings.model_validate_json(sent), point, plan.tasks) for point in plan.points]
        assert [[stage.key for stage in one.job.plan.stages] for one in steppers] == keys
        forget("far_methods")
        sizes.write_text("SIZE = 2.0\n")
        assert planned(tmp_path / "space.py", "agnews,amazon", five).name() != name


def test_neighbours_part_early_and_the_first_points_stay_in_front(five: Path) -> None:
    """Trials that start together differ at stage 1 where they can, so that they do not wait for each other."""
    plan = planned(SPACES / "am_lora_tree.py", "agnews,amazon,dbpedia", five, search="grid")
    assert plan.points[0] == plan.space.first[0]
    firsts = [keys[0] for keys in plan.keys]
    assert all(len(set(firsts[place : place + 3])) == 3 for place in range(1, 22, 3))
    assert sorted(map(tuple, plan.keys)) == sorted({tuple(keys) for keys in plan.keys})


def test_spread_takes_turns_at_every_stage() -> None:
    """Also below the first stage, and with trials of one and the same sequence."""
    words = ["aa", "ab", "ac", "ba", "bb", "ca", "aa"]
    assert [words[place] for place in spread([list(word) for word in words])] == [
        "aa",
        "ba",
        "ca",
        "ab",
        "bb",
        "ac",
        "aa",
    ]
    assert spread([]) == []
    assert spread([["a"], ["a"]]) == [0, 1]


def test_the_search_is_chosen_by_the_size_of_the_grid(five: Path) -> None:
    """A grid that fits is walked whole; a larger one or a range goes to Optuna; the seed is recorded."""
    order = "agnews,amazon"
    assert planned(SPACES / "slao_merging.py", order, five).search == "grid"
    assert planned(SPACES / "slao_merging.py", order, five, trials=5).search == "optuna"
    plan = planned(SPACES / "learning_rate.py", order, five)
    assert (plan.search, plan.points, plan.trials, plan.identity()["search_seed"]) == ("optuna", None, 20, 0)
    with pytest.raises(SpecError, match=r"the grid of .* has 18 points; drop --trials"):
        planned(SPACES / "slao_merging.py", order, five, trials=5, search="grid")


def test_settings_are_chosen_on_rows_outside_the_test_split(five: Path) -> None:
    """Unless the user says otherwise; the stages are those of a run that is scored on test."""
    plan = planned(SPACES / "o_lora.py", "agnews", five)
    assert plan.example.data.test_split == "validation"
    tests = {example.id for task in plan.tasks for example in task.test}
    assert tests and not tests & {example.id for task in plan.tasks for example in task.train}
    layers = [{"order": "agnews", "data": {"source": str(five), "test_split": "test", "train_examples": 6}}]
    said = plan_sweep(SweepRequest(SweepSettings(space=str(SPACES / "o_lora.py")), "laptop", layers), "/nowhere")
    assert said.example.data.test_split == "test"
    assert [keys[0] for keys in said.keys] == [keys[0] for keys in plan.keys]


def test_wrong_settings_are_named(five: Path, tmp_path: Path) -> None:
    """An unknown field with its file, a field that is fixed and varied, flags out of range."""
    path = tmp_path / "mine.py"
    path.write_text('SPACE = {"method.rnak": [4, 8]}')
    with pytest.raises(SpecError, match=r"(?s)mine.py, at the point .*rnak.*unknown field"):
        planned(path, "agnews", five)
    layers = [{"order": "demo", "method": {"lambda1": 1.0}}]
    with pytest.raises(SpecError, match=r"method.lambda1: set to 1.0 by a flag or --config, and varied by"):
        plan_sweep(SweepRequest(SweepSettings(space=str(SPACES / "o_lora.py")), "laptop", layers), "/nowhere")
    with pytest.raises(SpecError, match=r"(?s)--scheduler.*'best'.*--max-concurrent"):
        sweep_settings({"space": "x", "scheduler": "best", "max_concurrent": "all"})


def test_as_many_trials_run_at_once_as_the_nodes_hold() -> None:
    """A trial's worker stays on one node; half GPUs count; a group needs all its workers at once."""
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}, {"memory": 1e9}]
    assert capacity(nodes, {"CPU": 1, "GPU": 0}) == 11
    assert capacity(nodes, {"CPU": 2, "GPU": 0}) == 5
    assert capacity(nodes, {"CPU": 1, "GPU": 0.5}) == 4
    assert capacity(nodes, {"CPU": 2, "GPU": 0}, workers=2) == 2
    assert capacity(nodes, {"CPU": 1, "GPU": 1}, workers=4) == 0


def test_the_record_ranks_and_comes_back(tmp_path: Path) -> None:
    """Finished trials by AP, then those that went further, failed ones last; JSON there and back."""

    def trial(number: int, status: str, *scores: float) -> TrialRecord:
        rows = [{"AP": score, "FT": None, "key": f"{number}{place}"} for place, score in enumerate(scores)]
        return TrialRecord(id=str(number), number=number, point={}, keys=["a", "b"], rows=rows, status=status)

    several = [
        trial(1, "stopped", 90.0),
        trial(2, "finished", 1, 30.0),
        trial(3, "failed", 99.0),
        trial(4, "finished", 1, 40.0),
    ]
    record = SweepRecord(settings={}, stages=2, trials=several)
    assert [one.number for one in record.ranked()] == [4, 2, 1, 3]
    record.save(tmp_path)
    assert SweepRecord.load(tmp_path) == record
    assert SweepRecord.load(tmp_path / "other") is None
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SpecError, match="cannot be read as a sweep"):
        SweepRecord.load(tmp_path)


def test_packs_are_the_children_of_one_node(five: Path) -> None:
    """3 children of the root, and 3 of each of 1 + 3 + 9 + 27 + 81 nodes: 121 packs of 3."""
    plan = planned(SPACES / "am_lora_tree.py", "agnews,amazon,dbpedia,yahoo,yelp", five, search="grid", pack=3)
    named = {key: tuple(plan.sequences[plan.points.index(point)][place].key for point, place in pack)
             for key, pack in plan.packs.items()}  # fmt: skip
    assert len(named) == 363 and len(set(named.values())) == 121
    assert all(key in pack and len(pack) == 3 for key, pack in named.items())
    parents = {stage.key: stage.parent for stages in plan.sequences for stage in stages}
    assert all(len({parents[key] for key in pack}) == 1 for pack in named.values())
    smaller = planned(SPACES / "am_lora_tree.py", "agnews,amazon", five, search="grid", pack=2)
    assert sorted(map(len, smaller.packs.values())) == [2] * 8  # of 3 children the third is alone
    assert planned(SPACES / "am_lora_tree.py", "agnews,amazon", five, search="grid").packs == {}


def test_packing_changes_no_sweep(five: Path) -> None:
    """How stages are trained is no part of what a sweep is, so that it may be resumed with another --pack."""
    plans = [planned(SPACES / "o_lora.py", "agnews,amazon", five, search="grid", pack=pack) for pack in (1, 4)]
    assert plans[0].identity() == plans[1].identity() and plans[0].keys == plans[1].keys


@pytest.mark.parametrize(
    ("settings", "fields", "why"),
    [
        ({"search": "optuna"}, {}, "--search grid or random"),
        ({"workers": 2}, {}, "--workers 2 trains in a group"),
        ({}, {"train": {"zero_stage": 1}}, "drop train.zero_stage"),
        ({}, {"train": {"checkpoint_every": 5}}, "train.checkpoint_every=0"),
        ({}, {"method": {"dropout": 0.1}}, "method.dropout=0"),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_refused_before_anything_starts(
    five: Path, settings: dict[str, object], fields: dict[str, object], why: str
) -> None:
    """With what to do about it."""
    with pytest.raises(SpecError, match=f"--pack 2: .*{why}"):
        planned(SPACES / "o_lora.py", "agnews,amazon", five, fields, pack=2, **settings)
