"""The model that a run leaves in MLflow: loaded and asked as MLflow's users do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from raycl import Options, SpecError, StoreError, find_head, load, resolve, run_sequence
from raycl.use.pyfunc import PyfuncModel
from tests.kit.mlflow_server import MlflowServer
from tests.kit.runs import MakeFlags
from tests.kit.trained import Trained

PROMPTS = ["Entry: oak", "Entry: wolf"]


def logged(trained: Trained, method: str) -> str:
    """URI of the model that a run has logged."""
    folder = trained(method)
    mlflow.set_tracking_uri(f"sqlite:///{trained.root / 'mlflow.db'}")
    return f"runs:/{json.loads((folder / 'mlflow_run.json').read_text())['run_id']}/model"


@pytest.mark.parametrize("method", ["gain_lora", "route_lora", "o_lora"])
def test_mlflow_predicts_what_raycl_answers(trained: Trained, method: str) -> None:
    """As a list, a table or a series of prompts; gates and routes in place; put into a task's prompt where it says so."""
    model = mlflow.pyfunc.load_model(logged(trained, method))
    with load(str(trained(method))) as served:
        expected = [answer.text for answer in served.generate(PROMPTS)]
        within = [answer.text for answer in served.generate(PROMPTS, 3, task="roget")]
    assert model.predict(PROMPTS) == expected
    assert model.predict(pd.DataFrame({"prompt": PROMPTS})) == expected
    assert model.predict(pd.Series(PROMPTS)) == expected
    assert model.predict(PROMPTS, params={"task": "roget", "max_tokens": 3}) == within


def test_a_method_that_must_be_told_says_so(trained: Trained) -> None:
    """And answers once it is told."""
    model = mlflow.pyfunc.load_model(logged(trained, "per_task"))
    with pytest.raises(SpecError, match="must be told whose inputs come; allowed: roget, snippets"):
        model.predict(PROMPTS)
    with load(str(trained("per_task")), task="snippets") as served:
        assert model.predict(PROMPTS, params={"task": "snippets"}) == [
            answer.text for answer in served.generate(PROMPTS, task="snippets")
        ]


def test_a_store_that_is_elsewhere_now_can_be_named(trained: Trained, tmp_path: Path) -> None:
    """Where it lacks the stages, the message says which."""
    uri = logged(trained, "o_lora")
    model = mlflow.pyfunc.load_model(uri, model_config={"store": str(trained.root / "store"), "device": "cpu"})
    assert len(model.predict(PROMPTS)) == 2
    with pytest.raises(StoreError, match=r"has no stage .* of this model; .* model_config=\{\"store\""):
        mlflow.pyfunc.load_model(uri, model_config={"store": str(tmp_path / "empty")})


@pytest.mark.parametrize("data", [[{"text": "hello"}], {"prompt": ["a"]}, [float("nan")], pd.DataFrame(), []])
def test_what_is_no_text_is_refused(trained: Trained, data: object) -> None:
    """And not answered as if its name were the prompt."""
    model = PyfuncModel(find_head(str(trained("o_lora"))))
    with pytest.raises(SpecError, match=r"data: .*; allowed: a list"):
        model.predict(data)
    with pytest.raises(SpecError, match="max_tokens -1; allowed: 1 or more"):
        model.predict(PROMPTS, {"max_tokens": -1})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An MLflow server on loopback."""
    found = MlflowServer(tmp_path)
    found.start()
    yield found.url
    found.kill()


@pytest.mark.slow
def test_a_run_that_a_server_records_is_loaded_from_there(server: str, flags: MakeFlags, tmp_path: Path) -> None:
    """The whole way over HTTP: run, record, load, predict."""
    layer = flags.spec("gain_o", "llama") | {"order": "roget"}
    output = tmp_path / "out"
    run_sequence(resolve("laptop", [layer]), Options(str(tmp_path / "store"), server, output=str(output)), listeners=[])
    mlflow.set_tracking_uri(server)
    run_id = json.loads((output / "mlflow_run.json").read_text())["run_id"]
    with load(str(output)) as served:
        expected = [answer.text for answer in served.generate(PROMPTS)]
    assert mlflow.pyfunc.load_model(f"runs:/{run_id}/model").predict(PROMPTS) == expected
