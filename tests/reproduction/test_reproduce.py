"""Published tables as specs: they resolve at both scales without a download, agree with what is published, and run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from raycl.analysis.matrix import AccuracyMatrix
from raycl.analysis.published import TABLES
from raycl.errors import SpecError
from raycl.models.load import load_model
from raycl.models.tiny import save_tiny_model
from raycl.reproduction import driver as module
from raycl.reproduction.catalogue import ALL, find
from raycl.reproduction.cost import EXAMPLES, estimate
from raycl.reproduction.driver import Part, Where, make_place, plan_text, prepared, run_all
from raycl.reproduction.form import MODELS, PaperModel, Reproduction
from raycl.reproduction.record import markdown, report
from raycl.reproduction.specs import SMOKE_STAGES, Place, make_spec, sequences
from raycl.reproduction.status import row_status, status_page
from raycl.reproduction.tables.counts import gate_parameters, trained_parameters
from raycl.sections import ModelSpec
from raycl.spec import RunSpec
from raycl.tasks.catalogue import open_catalogue
from tests.kit.cli import invoke
from tests.kit.tiny_texts import write_tasks

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reproductions"
SEED_PAPERS = ("AM-LoRA", "GainLoRA", "SLAO")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the hub for a model fails."""

    def refuse(name: str, **options: object) -> str:
        raise AssertionError(f"{name} would be downloaded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.mark.parametrize("name", ALL)
def test_every_sequence_resolves_at_both_scales(name: str) -> None:
    """Valid specs, without a GPU, a model or data; at smoke scale the same method cut to the first stages."""
    one = ALL[name]
    for row in one.rows:
        for column in one.columns:
            for order in column.orders:
                paper = make_spec(one, row, column, order, 0, Place("paper"))
                smoke = make_spec(one, row, column, order, 0, Place("smoke", models={"t5": "/t5", "llama": "/llama"}))
                assert paper.order == order and tuple(paper.tasks) == open_catalogue().orders[order]
                assert paper.model.name == MODELS[column.model].hub
                assert smoke.method.name == paper.method.name and len(smoke.tasks) == SMOKE_STAGES
                assert smoke.workers == 0 and smoke.data.source == "demo" and smoke.model.name in ("/t5", "/llama")


def test_published_settings_arrive_by_order_and_model() -> None:
    """Per-task weights of AM-LoRA, O-LoRA's of order 6, GainLoRA's protocol over another method's own settings."""

    def spec(name: str, row: str, column: str) -> RunSpec:
        part = Part((row,), (column,)).of(ALL[name])
        return next(sequences(part, Place("paper"))).spec

    table = "am_lora/table1"
    assert spec(table, "am_lora", "long-4").method.l1[6] == 0.3
    assert spec(table, "am_lora", "std-2").method.l1 == 1e-5
    assert spec(table, "o_lora", "long-6").method.lambda1[-1] == 5 and spec(table, "o_lora", "long-6").data.reveal_task
    assert spec(table, "seq_ft", "std-1").train.lr == 1e-3
    main = spec("gain_lora/main", "sin_lora", "sni-1")
    assert (main.train.lr, main.train.epochs, main.method.rank, main.train.keep) == (3e-4, 100, 4, "best")
    assert spec("gain_lora/llama", "o_lora", "2-7B sni-1").train.lr == 5e-5
    assert spec("slao/main", "sapt_lora", "SuperNI").train.epochs == 50
    assert spec("slao/main", "inc_lora", "SuperNI").train.epochs == 5


def test_every_published_row_of_the_seed_papers_is_run_and_read_right() -> None:
    """Rows and columns are those of the borrowed tables, cell by cell; no table of the three papers is left out."""
    used = {one.published for one in ALL.values()}
    for table in TABLES:
        if not table.source.startswith(SEED_PAPERS):
            continue
        assert table.source in used
        one = next(one for one in ALL.values() if one.published == table.source)
        assert {row.label for row in one.rows} == set(table.rows)
        assert tuple(column.label for column in one.columns) == table.columns
        for row in one.rows:
            for column, value in zip(one.columns, table.rows[row.label], strict=True):
                expected = list(one.expected(row, column).values())
                text = " / ".join("-" if number is None else f"{number:.2f}" for number in expected)
                assert text == (value if isinstance(value, str) else "-" if value is None else f"{value:.2f}")


def test_what_is_not_known_is_said() -> None:
    """Second-hand tables, and those without figures, name what is not confirmed."""
    for one in ALL.values():
        if one.borrowed is None or one.borrowed.second_hand:
            assert one.unknown, one.id
        assert one.tolerance_reason


def test_parameters_of_the_papers_models() -> None:
    """Golden numbers: gates of 205,824 (T5-Large, h = 100) and 413,696 (Llama-2-7B, h = 50); branches of rank 4 and 8."""
    assert gate_parameters(1024, [100]) == 205_824
    assert gate_parameters(4096, [50]) == 413_696
    one = ALL["gain_lora/parameters"]
    counts = {
        (run.row.label, run.column.label): trained_parameters(run.spec.method, MODELS[run.column.model])
        for run in sequences(one, Place("paper"))
    }
    assert counts["o_lora", "t5-large sni-1"] == 1_179_648
    assert counts["o_lora", "t5-large long-6"] == 2_359_296
    assert counts["o_lora", "llama-2-7b sni-1"] == 2_097_152
    assert counts["gain_lora over o_lora", "t5-large sni-1"] == 1_179_648 + 205_824
    assert counts["gain_lora over inf_lora", "llama-2-7b sni-1"] == 2_097_152 // 2 + 413_696


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_formula_counts_what_a_method_trains(family: str, tmp_path: Path) -> None:
    """On a tiny model of the family, the formula gives the trainable numbers of the installed method."""
    from raycl.methods.common.base import StageInfo
    from raycl.methods.registry import build
    from raycl.state.stage_state import StageState

    folder = save_tiny_model(family, tmp_path / family, ["some text to learn words from"])
    backbone = load_model(ModelSpec(name=str(folder), precision="fp32"), "cpu").backbone
    adapted = tuple(
        (1, layer.in_features, layer.out_features)
        for path, layer in backbone.model.named_modules()
        if path.rpartition(".")[2] in backbone.targets
    )
    shape = PaperModel("tiny", family, 0, backbone.width, adapted)
    one = ALL["gain_lora/parameters"]
    for row in one.rows:
        params = next(sequences(Part((row.label,)).of(one), Place("paper"))).spec.method
        method = build(params, StageInfo(1, 2, "first", 0))
        method.install(backbone, StageState())
        inner = getattr(method, "inner", method)
        layers = list(inner.branches.layers.values())
        weights = [weight for layer in layers for weight in (layer.down, layer.up)]
        weights += [weight for part in method.modules().values() for weight in part.parameters()]
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        method.remove()
        assert trained_parameters(params, shape) == trained, row.label


def test_cost_counts_each_sequence_once() -> None:
    """Columns that average orders add nothing; a joint method has one stage; every task of the suite has a size."""
    cost = estimate(sequences(ALL["am_lora/table2"], Place("paper")))
    assert (cost.sequences, cost.stages) == (36, 3 * 9 * 4 + 9)
    assert 1 < cost.gpu_hours < 1000
    assert set(EXAMPLES) == set(open_catalogue().orders["long-4"])


def test_paper_scale_compares_with_the_published_figures(tmp_path: Path) -> None:
    """Mean over orders and seeds, difference, verdict; a cell with a run missing is not run; a report is renewed."""
    one = Part(("am_lora", "mtl"), ("std-1", "std mean"), seeds=1).of(ALL["am_lora/table2"])
    asked: list[str] = []

    def run(spec: RunSpec) -> AccuracyMatrix:
        asked.append(f"{spec.method.name} {spec.order}")
        matrix = AccuracyMatrix(spec.tasks)
        for stage in range(1, 5):
            for task in spec.tasks[:stage]:
                matrix.set(stage, task, {"std-1": 80.0, "std-2": 90.0, "std-3": 70.0}[spec.order])
        return matrix

    record = module.reproduce(one, Place("paper"), Part(seeds=1), run, Where(str(tmp_path)), lambda text: None)
    assert len(asked) == len(set(asked)) == 6
    cells = {(cell["row"], cell["column"]): cell for cell in record["cells"]}
    first = cells["am_lora", "std-1"]
    assert (first["expected"], first["measured"], first["verdict"]) == (78.8, 80.0, "within tolerance")
    assert first["difference"] == pytest.approx(1.2)
    assert cells["am_lora", "std mean"]["measured"] == pytest.approx(80)
    assert cells["mtl", "std-1"]["verdict"] == "no figure"
    assert json.loads((tmp_path / "am_lora-table2-paper.json").read_text()) == record
    assert "| 78.80 | 80.00 | +1.20 | within tolerance |" in (tmp_path / "am_lora-table2-paper.md").read_text()
    runs = list(sequences(one, Place("paper"), 1))
    empty = report(one, one, Place("paper"), runs, {})
    assert {cell["verdict"] for cell in empty["cells"]} == {None} and empty["cells_finished"] == 0
    assert "not run" in markdown(empty)


def test_status_words() -> None:
    """A row is reproduced only if all its figures are within the tolerance; gaps are said."""
    one = ALL["am_lora/table2"]
    row = one.rows[2]
    labels = [column.label for column in one.columns]

    def status(*verdicts: str | None) -> str:
        cells = [
            {"row": row.label, "column": label, "measure": "AP", "verdict": verdict}
            for label, verdict in zip(labels, verdicts, strict=False)
        ]
        return row_status(one, row, {"cells": cells})

    assert row_status(one, row, None) == "not run"
    assert status(*["wired"] * 4) == "wired"
    assert status(*["wired"] * 3) == "partly run"
    assert status(*["within tolerance"] * 4) == "reproduced"
    assert (
        status("within tolerance", "outside tolerance", "no figure", "within tolerance") == "differs in 1 of 4 figures"
    )
    assert status(*["no figure"] * 4) == "run, no figures"


def test_the_page_is_current() -> None:
    """docs/reproductions.md is what `python -m raycl reproductions` writes."""
    assert (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8") == status_page(RESULTS)


def test_wrong_names_are_refused() -> None:
    """Each message says what is allowed."""
    with pytest.raises(SpecError, match="did you mean 'am_lora/table1'"):
        find("am_lora/tabel1")
    with pytest.raises(SpecError, match="allowed: inc_lora; o_lora; am_lora; mtl"):
        Part(("gain_lora",)).of(ALL["am_lora/table2"])
    with pytest.raises(SpecError, match="allowed: smoke, paper"):
        make_place("large", "hub", [], None)
    with pytest.raises(SpecError, match="NAME=FOLDER"):
        make_place("paper", "hub", ["t5-large"], None)
    assert make_place("paper", "hub", ["t5-large=/m"], 2).models == {"t5-large": "/m"}


def test_a_plan_names_keys_and_cost_and_downloads_nothing() -> None:
    """At smoke scale with keys, at paper scale with the reason why there are none."""
    one = ALL["am_lora/table2"]
    with prepared(make_place("smoke", "hub", [], None)) as place:
        text = plan_text(one, place, Part())
        assert len({line.split("|")[-2] for line in text.splitlines() if "custom:" in line}) == 4
    assert "needs local model and data" in plan_text(one, Place("paper"), Part(seeds=1))
    assert "36 sequences, at most 117 stage runs" in plan_text(one, Place("paper"), Part())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Every table at smoke scale, all in this process."""
    folder = tmp_path_factory.mktemp("smoke")
    with prepared(make_place("smoke", "hub", [], None)) as place:
        records = run_all(list(ALL.values()), place, Part(), Where(str(folder)), lambda text: None)
    assert len(list(folder.glob("*-smoke.md"))) == len(ALL)
    return {record["id"]: record for record in records}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ALL)
def test_smoke_runs_every_cell_and_judges_none(smoke: dict[str, dict], name: str) -> None:
    """All cells are wired, or computed where nothing trains; no figure of a random model is shown."""
    record, one = smoke[name], ALL[name]
    assert record["cells_finished"] == record["cells_in_table"] == len(record["cells"])
    assert {cell["verdict"] for cell in record["cells"]} == {"wired" if one.trains else "computed"}
    if one.trains:
        assert all(cell["measured"] is None and cell["difference"] is None for cell in record["cells"])


def test_smoke_of_one_table(tmp_path: Path) -> None:
    """Two rows on a T5: trained and scored for real, in this process."""
    part = Part(("inc_lora", "am_lora"), ("std-1",))
    lines: list[str] = []
    with prepared(make_place("smoke", "hub", [], None)) as place:
        (record,) = run_all([ALL["am_lora/table1"]], place, part, Where(str(tmp_path)), lines.append)
    assert [cell["verdict"] for cell in record["cells"]] == ["wired", "wired"]
    assert record["cells_finished"] == 2 and record["cells_in_table"] == 96
    assert "2 wired" in lines[-1]


def test_paper_scale_goes_through_the_driver(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """The paper's own settings, with local copies of model and data: keys in the plan, a report, nothing trained twice."""
    data = write_tasks(tmp_path / "data", open_catalogue().orders["std-1"])
    place = make_place("paper", str(data), [f"t5-large={model_folders['t5']}"], 0)
    part = Part(("inc_lora",), ("std-1",), seeds=1)
    one = ALL["am_lora/table1"]
    assert "needs local" not in plan_text(one, place, part)
    where = Where(str(tmp_path / "out"), str(tmp_path / "store"), f"sqlite:///{tmp_path / 'mlflow.db'}")
    records = [run_all([one], place, part, where, lambda text: None)[0] for _ in range(2)]
    (cell,) = records[0]["cells"]
    assert cell["expected"] == 66.0 and cell["verdict"] in ("within tolerance", "outside tolerance")
    assert cell["difference"] == pytest.approx(cell["measured"] - 66.0)
    assert records[1]["cells"] == records[0]["cells"]
    (folder,) = (tmp_path / "out" / "sequences").iterdir()
    assert json.loads((folder / "spec.json").read_text())["train"]["batch_size"] == 64


def test_the_command_lists_plans_and_refuses() -> None:
    """Without a name it lists; a wrong name is one message and exit code 2."""
    listed = invoke("reproduce")
    assert listed.code == 0 and all(f"| {name} |" in listed.stdout for name in ALL)
    planned = invoke("reproduce", ["slao/main", "--plan", "--scale", "paper", "--row", "slao", "--seeds", "1"])
    assert planned.code == 0 and "| slao | standard | std-1 | 0 | 4 |" in planned.stdout
    wrong = invoke("reproduce", ["slao/mian"])
    assert wrong.code == 2 and "did you mean 'slao/main'" in wrong.stderr


def test_ids_are_unique_and_forms_are_checked() -> None:
    """The registry loses none; a form with an unknown field is refused."""
    from raycl.reproduction.tables import am_lora, gain_lora, slao

    assert len(ALL) == sum(len(paper.REPRODUCTIONS) for paper in (am_lora, gain_lora, slao))
    with pytest.raises(ValueError):
        Reproduction(**(ALL["slao/main"].model_dump() | {"figure": 3}))
    assert math.isfinite(sum(one.tolerance for one in ALL.values()))
