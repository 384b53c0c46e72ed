"""Models of many families go through branches, gates over subspaces and attention on two tasks, with the defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycl.methods.registry import build
from raycl.models.load import LoadedModel, load_model
from raycl.sections import ModelSpec
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder
from raycl.train.workers import Workers
from tests.kit.odd_models import FAMILIES, NO_DEFAULT, REFUSED, save_odd

METHODS: dict[str, dict[str, Any]] = {
    "o_lora": {"name": "o_lora"},
    "gain_inf": {"name": "gain_lora", "over": "inf_lora", "gate_hidden": [16]},
    "am_lora": {"name": "am_lora"},
}
FURTHER: dict[str, dict[str, Any]] = {
    "merging": {"name": "merging"},
    "migu_full": {"name": "migu", "over": "seq_ft"},
    "l2p": {"name": "l2p"},
}
"""Methods that look at the weights or the embeddings themselves; on one model with Conv1D and one encoder-decoder."""
RATES = {"l2p": 0.1, "migu_full": 1e-3}
NAMED = ["in_proj", "x_proj"]
"""What is adapted in a model without attention."""
LABELS = ("good", "bad")


def make_task(number: int) -> Task:
    """Four reviews whose first word decides."""
    rows = tuple(
        Example(str(i), "Judge.\n", f"{('fine', 'poor')[i % 2]} film {number} {i}", "\nAnswer:", (LABELS[i % 2],))
        for i in range(4)
    )
    return Task(f"t{number}", "toy", "exact_match", LABELS, rows, rows, {})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Loads a tiny model of a family, once."""
    root = tmp_path_factory.mktemp("families")
    known: dict[str, LoadedModel] = {}

    def get(family: str) -> LoadedModel:
        if family not in known:
            folder: Path = save_odd(family, root / family)
            known[family] = load_model(ModelSpec(name=str(folder), precision="fp32"), "cpu")
        return known[family]

    return get


CASES = [(family, name) for family in FAMILIES if family not in REFUSED for name in METHODS]
CASES += [(family, name) for family in ("gpt2", "bart") for name in FURTHER]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_family_learns_two_tasks_and_is_served(
    family: str, name: str, models: Callable[[str], LoadedModel], run_sequence: Callable[..., list]
) -> None:
    """Nothing of the model is changed, the losses fall, and the state is served."""
    model = models(family)
    assert not model.faults
    before = {path: value.clone() for path, value in model.backbone.model.state_dict().items()}
    named = {"targets": NAMED} if family in NO_DEFAULT else {}
    results = run_sequence(
        model, (METHODS | FURTHER)[name] | named, [make_task(1), make_task(2)], epochs=4, lr=RATES.get(name, 1e-2)
    )
    after = model.backbone.model.state_dict()
    assert all(value.equal(after[path]) for path, value in before.items())
    for result in results:
        assert result.log[-1]["loss"] < result.log[0]["loss"]
    last = results[-1]
    method = build(last.method.params, last.method.info)
    method.serve(model.backbone, last.state)
    encoder = Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)
    scored = Decoder(model, method, encoder, 4, Workers()).score(make_task(2))
    method.remove()
    assert len(scored.predictions) == 4
    if last.part.branch is not None:
        assert {path.rpartition(".")[2] for path in last.part.branch.a} == set(
            named.get("targets", model.backbone.targets)
        )
