"""The shared matrix notices what it is for: with one fault put into the skeleton's method, it fails where it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import SpecError
from raycl.models.load import LoadedModel
from raycl.skeleton.write import new_method
from raycl.testing import method_matrix
from raycl.testing.matrix import SETTINGS
from raycl.testing.own import OwnMatrix
from raycl.testing.probes import probe_logits
from raycl.testing.tiny import load_tiny
from raycl.testing.toys import make_toy_task, run_sequence_in_memory, run_stage_in_memory
from tests.kit.outside import forget, forgotten

NAME = "slow_average:SlowAverage"
PARAMS = {"rank": 4, "alpha": 16, "dropout": 0.1, "decay": 0.5}
DECLARED: dict[str, Any] = {"trains": "AB", "serves_trained": False, "continues": False, "other_values": {"decay": 0.9}}
LAST = "\n        return Branch(trained.rank, trained.alpha, a, b)\n"
"""The end of the skeleton's file, after which a fault may add methods."""
FAULTS: dict[str, tuple[str, str, str]] = {
    "chance that no seed decides": (
        "the_seed_decides_everything",
        "        decay, before = self.params.decay, self.before\n",
        "        import os\n        decay, before = os.urandom(1)[0] / 256, self.before\n",
    ),
    "a setting that acts is left out of the key": (
        "what_the_stage_key_leaves_out_has_no_effect",
        "if stage == 1 else",
        "if stage < 3 else",
    ),
    "a misspelt name in inert": ("inert_settings_are_fields_and_never_the_name", '({"decay"}', '({"decayed"}'),
    "adapters stay on": ("remove_leaves_no_trace", LAST, LAST + "\n    def remove(self) -> None:\n        pass\n"),
    "a part with undocumented tensors": (
        "what_a_part_holds_is_documented",
        "branch=self.averaged(trained), facts",
        "branch=self.averaged(trained), tensors={'more': trained.a[min(trained.a)]}, facts",
    ),
    "examples in the facts": (
        "who_declares_no_replay_keeps_no_example",
        LAST,
        LAST + "\n    def examples(self, own, write):\n        self.kept = own[0].body\n"
        "        return super().examples(own, write)\n"
        "\n    def facts(self):\n        return {'kept': self.kept}\n",
    ),
    "rows of earlier tasks": (
        "who_declares_no_replay_keeps_no_example",
        LAST,
        LAST + "\n    def examples(self, own, write):\n        from dataclasses import replace\n"
        "        rows = super().examples(own, write)\n"
        "        return [*rows, replace(rows[0], example=replace(own[0], body='earlier'))]\n",
    ),
    "a count that checkpoints do not keep": (
        "a_killed_stage_goes_on_where_it_was",
        LAST,
        LAST
        + "\n    seen = 0\n\n    def penalties(self, step):\n        from raycl.methods.common.base import Penalty\n"
        "        self.seen += 1\n        return {'count': Penalty(step.loss * self.seen, 0.1)}\n",
    ),
    "an error of remove hides the one of the stage": (
        "a_failing_stage_leaves_no_trace",
        LAST,
        LAST + "\n    def remove(self) -> None:\n        raise ValueError('already removed')\n",
    ),
    "what is served is what was trained": ("serving_gives_the_trained_function", "", ""),
    "only A is said to train": ("it_trains_what_is_declared_and_nothing_else", "", ""),
}
"""Fault -> the test that must fail, and what is replaced by what in the method's file (nothing: it is declared wrongly)."""
WRONG: dict[str, dict[str, Any]] = {
    "what is served is what was trained": {"serves_trained": True},
    "only A is said to train": {"trains": "A"},
}
"""What is declared wrongly."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a skeleton, which is the current one; what is imported from it is forgotten."""
    with forgotten("slow_average"):
        folder = new_method("slow_average", tmp_path)
        monkeypatch.chdir(folder)
        yield folder


@pytest.fixture
def model(tiny_folders: dict[str, Path]) -> LoadedModel:
    """A tiny Llama of its own: a fault may leave something on it."""
    return load_tiny(tiny_folders["llama"], "fp32")


def check(matrix: type[OwnMatrix], name: str, model: LoadedModel, scratch: Path) -> None:
    """Run one test of a matrix."""
    case, tasks = matrix.declared, [make_toy_task(number, spread=3) for number in (1, 2, 3)]

    def run(runner: Any) -> Any:
        return lambda *arguments, **train: runner(*arguments, **SETTINGS | train)

    given: dict[str, Any] = {
        "case": case,
        "family": "llama",
        "tiny": model,
        "toy_tasks": tasks,
        "run_stage": run(run_stage_in_memory),
        "run_sequence": run(run_sequence_in_memory),
        "tmp_path": scratch,
        "stage": 2,
    }
    test = getattr(matrix(), f"test_{name}")
    wanted = test.__code__.co_varnames[1 : test.__code__.co_argcount]
    if "trained" in wanted:
        probe = probe_logits(model, tasks[0].test)
        given["trained"] = given["run_sequence"](model, case.params, tasks, probe=probe)
    test(**{one: given[one] for one in wanted})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_test_that_is_for_it(home: Path, model: LoadedModel, tmp_path: Path, fault: str) -> None:
    """And without the fault the same test passes."""
    name, old, new = FAULTS[fault]
    check(method_matrix(NAME, PARAMS, **DECLARED), name, model, tmp_path / "right")
    file = home / "slow_average.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1) if old else file.read_text())
    forget("slow_average")
    wrong = method_matrix(NAME, PARAMS, **DECLARED | WRONG.get(fault, {}))
    with pytest.raises((AssertionError, ValueError)):
        check(wrong, name, model, tmp_path / "wrong")


def test_what_the_matrix_cannot_use_is_said(home: Path) -> None:
    """A method that is not there, a setting or a declaration that is none."""
    with pytest.raises(SpecError, match="methods there: SlowAverage"):
        method_matrix("slow_average:Slow")
    with pytest.raises(SpecError, match=r"(?s)'rnk': 4.*rnk"):
        method_matrix(NAME, {"rnk": 4})
    with pytest.raises(SpecError, match="unexpected keyword argument 'train_s'"):
        method_matrix(NAME, {}, train_s="AB")
    with pytest.raises(SpecError, match="unknown method"):
        method_matrix("slow_averag")


def test_a_class_is_its_own_name(home: Path) -> None:
    """The class, its name, and raycl's own methods by their names."""
    from raycl.methods.registry import method_class

    assert method_matrix(method_class(NAME)).declared == method_matrix(NAME).declared
    assert method_matrix("sin_lora", {"rank": 2}).declared.params == {"name": "sin_lora", "rank": 2}
