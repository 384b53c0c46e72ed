"""Space files: what they may hold, the points made from them, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycl.errors import SpecError
from raycl.sequence.resolve import resolve
from raycl.sweep.spaces import decode, layer, load_space

SHIPPED = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.py"))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a space file."""

    def write(text: str) -> str:
        path = tmp_path / "space.py"
        path.write_text("from ray import tune\nfrom raycl.sweep.spaces import per_stage\n" + text)
        return str(path)

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_space_gives_valid_specs(path: Path) -> None:
    """Every listed value makes a spec; the paper's values come first."""
    space = load_space(str(path), 4)
    assert space.first
    assert space.draw(5, seed=0)[: len(space.first)] == space.first
    for point in [*space.samples(), *space.draw(20, seed=0)]:
        spec = resolve("laptop", [space.base, {"order": "std-1"}, layer(point)], 0)
        for name, value in point.items():
            group, _, field = name.partition("[")[0].partition(".")
            held = getattr(getattr(spec, group), field)
            assert value in held if "[" in name else held == value


def test_a_choice_per_stage_is_a_dimension_per_stage(write: Any) -> None:
    """Gathered into one list for the spec; a point of FIRST may give one value for all stages."""
    text = 'SPACE = {"method.l1": per_stage([0.1, 0.2])}\nFIRST = [{"method.l1": 0.2}, {"method.l1": [0.1, 0.2, 0.1]}]'
    space = load_space(write(text), 3)
    assert space.size == 8
    assert list(space.dimensions) == ["method.l1[1]", "method.l1[2]", "method.l1[3]"]
    assert [layer(point)["method"]["l1"] for point in space.first] == [[0.2] * 3, [0.1, 0.2, 0.1]]
    assert len(space.grid()) == 8
    assert space.grid()[:2] == space.first


def test_drawn_points_are_distinct_and_fixed_by_the_seed(write: Any) -> None:
    """Random search: no point twice, the same points for the same seed, no more than there are."""
    space = load_space(write('SPACE = {"method.rank": [1, 2, 3], "seed": [0, 1]}'), 2)
    points = space.draw(100, seed=1)
    assert len(points) == 6
    assert points == space.draw(100, seed=1) != space.draw(100, seed=2)
    ranges = load_space(
        write('SPACE = {"train.lr": tune.loguniform(1e-5, 1e-2), "train.epochs": tune.randint(1, 4)}'), 2
    )
    drawn = ranges.draw(4, seed=3)
    assert drawn == ranges.draw(4, seed=3)
    assert all(1e-5 <= point["train.lr"] <= 1e-2 and point["train.epochs"] in (1, 2, 3) for point in drawn)
    with pytest.raises(SpecError, match=r"train.lr, train.epochs in .* is a range"):
        ranges.grid()


def test_a_point_survives_its_way_through_tune(write: Any) -> None:
    """Lists, none and texts are categories as JSON text; numbers of a range stay numbers."""
    ranges = '"train.schedule": tune.choice(["linear"]), "train.lr": tune.uniform(0, 1)'
    text = f'SPACE = {{"method.targets": [None, ["q"]], {ranges}}}'
    space = load_space(write(text), 2)
    point = {"method.targets": ["q"], "train.schedule": "linear", "train.lr": 0.25}
    assert space.encode(point) == {"method.targets": '["q"]', "train.schedule": '"linear"', "train.lr": 0.25}
    assert decode(space.encode(point)) == point


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BASE = {}", "SPACE is missing or empty"),
        ("SPACE = 3", "SPACE: expected a mapping"),
        ('SPACE = {"method.rank": 8}', r"SPACE\['method.rank'\]: expected a list of values"),
        ('SPACE = {"method.rank": [8, 8]}', "a value stands twice"),
        ('SPACE = {"method.rank": [{1}]}', "values must be numbers, texts, lists or none"),
        ('SPACE = {"data.seed": [1, 2]}', "same in all trials of a sweep"),
        ('SPACE = {"method.rank": [8]}\nBASE = {"method.rank": 8}', "in SPACE and in BASE"),
        ('SPACE = {"method.rank": [8]}\nFIRST = [{}]', "names every field of SPACE"),
        ('SPACE = {"method.rank": [8]}\nFIRST = [{"method.rank": 9}]', "9 is not among SPACE's values"),
        ('SPACE = {"train.lr": tune.uniform(0, 1)}\nFIRST = [{"train.lr": 2.0}]', "2.0 is outside SPACE's range"),
        ('SPACE = {"method.l1": per_stage([1])}\nFIRST = [{"method.l1": [1]}]', "1 values; allowed: one value, or 2"),
        ("1 / 0", "running the file failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_space_is_refused_with_its_place(write: Any, text: str, message: str) -> None:
    """The file, the field and what is allowed are named."""
    path = write(text)
    with pytest.raises(SpecError, match=message) as error:
        load_space(path, 2)
    assert str(error.value).startswith(f"--space {path}")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """With a hint at what to give."""
    with pytest.raises(SpecError, match=r"nothing.py: no such Python file; give one like tune_spaces"):
        load_space(str(tmp_path / "nothing.py"), 2)
