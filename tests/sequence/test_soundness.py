"""What follows a sign that a stage went wrong: it ends the run, is said and recorded, or only recorded."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raycl.analysis.health import FEWEST
from raycl.errors import DivergedError
from raycl.report.terminal import Terminal
from raycl.sequence.driver import Options, run_sequence
from raycl.sequence.resolve import resolve
from raycl.state.store import Store
from tests.kit.runs import MakeFlags


class Runs:
    """Runs of stages on one store, under a policy each; the second stage's rate is far above the first one's."""

    def __init__(self, flags: MakeFlags, folder: Path) -> None:
        self.flags, self.folder = flags, folder
        self.store = Store(str(folder / "store"))

    def __call__(self, policy: str, tasks: int = 2) -> str:
        """What the terminal shows."""
        rates = [1e-4, 10, 1e-4][:tasks]
        fields: dict[str, Any] = self.flags.spec("sin_lora", "llama")
        fields |= {"order": ",".join(["roget", "speakers", "plots"][:tasks]), "eval": {"forward": False}}
        fields |= {"train": {"lr": rates, "batch_size": 8, "log_every": 1, "health": policy}}
        shown = StringIO()
        options = Options(self.store.uri, "off", output=str(self.folder / f"out {policy} {tasks}"))
        run_sequence(resolve("laptop", [fields]), options, [Terminal(Console(file=shown, width=400))])
        return shown.getvalue()


def test_what_follows_a_sign(flags: MakeFlags, tmp_path: Path) -> None:
    """`fail` stores nothing of the stage; `warn` says the sign and notes it in the manifest; `continue` only notes it.

    A stage that was stored with a sign ends a run under `fail` before the next one is trained.
    """
    runs = Runs(flags, tmp_path)
    with pytest.raises(
        DivergedError, match=r"2 \(speakers\): its branch's update .* nothing of it .* train.health=warn"
    ):
        runs("fail")
    (sound,) = runs.store.stage_keys()
    assert runs.store.manifest(sound).end.health == ()

    assert "look at speakers: its branch's update has the length" in runs("warn")
    (key,) = set(runs.store.stage_keys()) - {sound}
    (sign,) = runs.store.manifest(key).end.health
    assert "it drowns what they know" in sign
    again = runs("continue")
    assert "stage 2/2 speakers: taken from the store" in again and "look at" not in again

    with pytest.raises(DivergedError, match=r"stage 2 \(speakers\): its branch's update .* and it is stored"):
        runs("fail", 3)
    assert set(runs.store.stage_keys()) == {sound, key}


def test_a_score_no_better_than_one_answer_is_told_recorded_and_read_again(flags: MakeFlags, tmp_path: Path) -> None:
    """A stage that learns nothing: its score is stored with the sign, which the next run and `fail` read again."""
    fields: dict[str, Any] = flags.spec("sin_lora", "llama")
    fields |= {"eval": {"forward": False}}
    fields["train"] = {"lr": 1e-6, "batch_size": 16}
    fields["data"] |= {"test_examples": FEWEST}
    store = Store(str(tmp_path / "store"))

    def run(policy: str, order: str = "roget,speakers") -> str:
        shown = StringIO()
        job = resolve("laptop", [fields, {"order": order, "train": {"health": policy}}])
        terminal = Terminal(Console(file=shown, width=400))
        run_sequence(job, Options(store.uri, "off", output=str(tmp_path / policy)), [terminal])
        return shown.getvalue()

    sign = "look at roget: 0.0 after its own stage is no more than always answering"
    assert sign in run("warn")
    stored = [store.read_scores(key).get("health", []) for kind, key in store.entries() if kind == "scores"]
    assert sum("learned nothing" in sign for health in stored for sign in health) == 2, (
        "each task once, after its own stage"
    )
    assert "stage 2/2 speakers: taken from the store" in run("continue")
    with pytest.raises(DivergedError, match=r"stage 1 \(roget\): 0.0 after its own stage .* and it is stored"):
        run("fail", "roget,speakers,plots")


def test_the_distance_from_the_base_model_stands_in_the_manifest(flags: MakeFlags, tmp_path: Path) -> None:
    """For each stage, where it was asked for; who does not ask finds the same stages; all weights have none."""

    def gauges(method: dict[str, Any], rows: int, where: str) -> list[dict[str, float]]:
        fields: dict[str, Any] = flags.spec("sin_lora", "llama")
        fields |= {"order": "roget,speakers", "eval": {"forward": False}}
        fields["method"] = {"name": "replay", **method}
        fields["train"] = {"lr": 1e-3, "batch_size": 8, "drift_rows": rows}
        store = Store(str(tmp_path / where))
        options = Options(store.uri, "off", output=str(tmp_path / f"out {where} {rows}"))
        run_sequence(resolve("laptop", [fields]), options, [])
        ends = [store.manifest(key).end for key in store.stage_keys()]
        return [dict(end.gauges) for end in sorted(ends, key=lambda end: end.stage)]

    own = {"answers": "model"}
    found = gauges(own, 3, "lora")
    assert len(found) == 2 and all(0 < one["kl_to_base"] < 10 and 0 <= one["memory_score"] <= 100 for one in found)
    assert gauges(own, 0, "lora") == found
    assert gauges({"trains": "full"}, 3, "full") == [{}, {}]
