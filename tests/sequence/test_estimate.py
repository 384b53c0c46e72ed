"""`raycl estimate`: the look ahead of `raycl plan`, on hardware that is not here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycl.analysis.cost import PHASES, Rates
from raycl.report.pace import duration
from raycl.sequence import rates
from raycl.sequence.speeds import Machine
from tests.kit.cli import Answer, invoke
from tests.kit.runs import MakeFlags

SLOW = Rates(1e6, 1e6, 1e6, 1e-3, "a made-up machine")
Say = Callable[..., Answer]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet mode would silence the other tests' loggers as well; nothing goes to MLflow, nothing is timed."""
    monkeypatch.setenv("RAYCL_DEBUG", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    monkeypatch.setattr("raycl.sequence.estimate.timed", lambda device, precision: SLOW)


def on_paper(given: list[str], *more: object) -> dict[str, Any]:
    """What the command says, as JSON."""
    answer = invoke("estimate", [*given, "--json", *more])
    assert answer.code == 0, answer.output
    return json.loads(answer.stdout)


def test_what_is_planned_is_what_is_estimated(flags: MakeFlags, tmp_path: Path) -> None:
    """The same stages, keys, tokens and memory; and seconds that come to the sum of their phases."""
    given = flags(tmp_path / "store", "gain_inf", "t5", "roget,snippets", eval__forward="false")
    planned = json.loads(invoke("plan", [*given, "--json"]).stdout)
    found = on_paper(given)
    assert not (tmp_path / "store").exists()
    assert {name: found[name] for name in ("stages", "scoring", "memory")} == {
        name: planned[name] for name in ("stages", "scoring", "memory")
    }
    assert planned["training_seconds"] is None and found["gpus"] == 0
    assert [one["stage"] for one in found["seconds"]] == [1, 2]
    assert all(one[phase] > 0 for one in found["seconds"] for phase in PHASES)
    assert found["total_seconds"] == pytest.approx(sum(one[phase] for one in found["seconds"] for phase in PHASES))
    shown = invoke("estimate", given).stdout
    assert f"in all  {duration(found['total_seconds'])} on this machine" in shown.replace("in all ", "in all ")
    assert "assumed: speed of each process: a made-up machine" in shown


def test_more_gpus_are_never_slower(flags: MakeFlags, tmp_path: Path) -> None:
    """But no faster than the batch has rows: then the rest stand idle, or hold runs of their own."""
    given = flags(tmp_path / "store", "sin_lora", "llama", "roget", train__batch_size=8, eval__forward="false")
    found = {gpus: on_paper(given, "--gpus", gpus) for gpus in (1, 2, 3, 8, 9, 64)}
    totals = [one["total_seconds"] for one in found.values()]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    assert [one["workers"] for one in found.values()] == [1, 2, 2, 8, 8, 8]
    assert [one["at_once"] for one in found.values()] == [1, 1, 1, 1, 1, 8]
    assert any("1 of the 9 GPUs have nothing to do" in line for line in found[9]["assumptions"])
    assert any("the 64 GPUs hold 8 such runs at once" in line for line in found[64]["assumptions"])
    slower = on_paper(given, "--gpus", 8, "--gpu", "l4")
    assert slower["total_seconds"] > found[8]["total_seconds"]


def test_more_branches_are_never_cheaper(flags: MakeFlags, tmp_path: Path) -> None:
    """A later stage of the same rows takes longer where earlier branches stay, and as long where they do not."""
    for method, grows in (("o_lora", True), ("sin_lora", False)):
        given = flags(tmp_path / "store", method, "llama", "roget,snippets,plots", data__max_source_tokens=16)
        stages = on_paper(given)["stages"]
        works = [stage["train"]["products"] / stage["run"] for stage in stages]
        assert (works == sorted(set(works))) if grows else max(works) == pytest.approx(min(works), rel=0.05)


def test_measured_stages_speak_before_assumptions(flags: MakeFlags, tmp_path: Path) -> None:
    """After a run its speed is known, for the next setting of it."""
    given = flags(tmp_path / "store", "sin_lora", "llama", "roget", eval__forward="false")
    assert invoke("run", given).code == 0
    found = on_paper(given, "--set", "train.epochs=2")
    assert any(line.startswith("training and passes: measured") for line in found["assumptions"])
    speed = found["speed"]
    assert found["training_seconds"] == pytest.approx(
        found["stages"][0]["run"] / speed["tokens_per_s"] * speed["overhead"]
    )


def test_a_model_that_is_not_here_is_estimated_by_its_shapes(
    fifteen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5-large without a network: tokens are guessed, no stage has a key, and that is said."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = ["--order", "agnews", "--data", str(fifteen), "--store", str(tmp_path / "store")]
    found = on_paper(given, "--model", "google-t5/t5-large", "--gpus", 8)
    assert found["parameters"] == 737_668_096 and found["spec"]["preset"] == "paper"
    assert any("4 characters count as a token" in note for note in found["notes"])
    assert any("none counts as stored" in note for note in found["notes"])


def test_a_sweep_shares_what_its_trials_have_in_common(flags: MakeFlags, tmp_path: Path) -> None:
    """Two ranks and two rates at the second stage: four trials, two first stages, four second ones."""
    space = tmp_path / "space.py"
    space.write_text('SPACE = {"method.rank": [2, 4], "train.lr": [[1e-2, 1e-2], [1e-2, 1e-3]]}\n')
    given = flags(tmp_path / "store", {"name": "sin_lora"}, "llama", "roget,snippets", eval__forward="false")
    text = Path(given[3]).read_text().replace("  lr: 0.01\n", "")
    Path(given[3]).write_text(text)
    found = on_paper(given, "--space", space, "--gpus", 8)
    sweep = found["sweep"]
    assert (sweep["trials"], sweep["needed"], sweep["distinct"], sweep["stored"]) == (4, 8, 6, 0)
    assert sweep["at_once"] == 2 and found["workers"] == 4
    assert sweep["seconds"] < sweep["apart_seconds"] / 2
    one = on_paper(given, "--space", space, "--gpus", 4)["sweep"]
    assert one["at_once"] == 1 and one["seconds"] > sweep["seconds"]
    drawn = tmp_path / "drawn.py"
    drawn.write_text('from ray import tune\nSPACE = {"train.lr": tune.loguniform(1e-4, 1e-2)}\n')
    refused = invoke("estimate", [*given, "--space", drawn])
    assert refused.code == 2 and str(drawn) in refused.stderr


def test_kinds_of_gpus_are_known_by_name() -> None:
    """What a GPU calls itself holds its kind; stated figures keep the order of the data sheets."""
    assert rates.kind_of("NVIDIA H100 80GB HBM3") == "h100" and rates.kind_of("NVIDIA L40S") == "l40s"
    assert rates.kind_of("NVIDIA A100-SXM4-80GB") == "a100" and rates.kind_of("Tesla T4") is None
    speeds = [rates.stated(kind, "bf16").products for kind in ("h100", "l40s", "a100", "a10", "l4")]
    assert speeds == sorted(speeds, reverse=True)
    assert rates.stated("h100", "fp32").products < rates.stated("h100", "bf16").products


def test_a_stage_speaks_for_machines_like_its_own() -> None:
    """A kind of GPU for the names that hold it; no name speaks for none."""
    named = Machine("cuda", "h100", 8)
    assert named.like(Machine("cuda", "NVIDIA H100 80GB HBM3", 8))
    assert not named.like(Machine("cuda", "NVIDIA H100 80GB HBM3", 4))
    assert not named.like(Machine("cuda", "NVIDIA A100-SXM4-80GB", 8))
    assert not Machine("cuda", "", 8).like(Machine("cuda", "NVIDIA H100 80GB HBM3", 8))
