"""Compiled layers: the same training but for rounding, one piece of code for all layers, and nothing left behind."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import pytest
import torch

from raycl.errors import SetupError, SpecError
from raycl.presets import merge
from raycl.sequence.resolve import resolve
from raycl.testing.probes import tensors_of
from raycl.testing.toys import make_toy_task, run_stage_in_memory
from raycl.train import compiled as module
from raycl.train.compiled import compiled, repeated
from tests.kit.cases import CASES
from tests.kit.runs import MakeFlags

TASKS = [make_toy_task(number, spread=3) for number in (1, 2)]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Layers are traced as ever and their graphs run as they are, which takes no compiler; the graphs."""
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(module.torch, "compile", partial(torch.compile, backend=keep))
    return graphs


def both(model: Any, case: str) -> list[dict[str, torch.Tensor]]:
    """The second stage's tensors, trained without and with compiled layers."""
    params = {**CASES[case].params, "dropout": 0.0}
    state = run_stage_in_memory(model, params, TASKS, None).state
    return [
        tensors_of(run_stage_in_memory(model, params, TASKS, state, lr=1e-3, epochs=1, compile=on).part)
        for on in (False, True)
    ]


@pytest.mark.parametrize("family", ["llama"], indirect=True)
@pytest.mark.parametrize("case", ["o_lora", "am_lora_ar"])
def test_compiled_layers_train_the_same(tiny: Any, case: str, traced: list[Any]) -> None:
    """Plain and gated, batches of several lengths; the layers of a kind share their code."""
    layers = repeated(tiny.backbone.model)
    plain, made = both(tiny, case)
    assert plain.keys() == made.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(made[name], tensor, atol=1e-5, rtol=1e-4)
    assert traced
    assert not any("forward" in layer.__dict__ for layer in layers)


def test_the_layers_of_a_kind_share_their_code(tiny: Any, traced: list[Any]) -> None:
    """Two layers, one graph."""
    backbone = tiny.backbone
    ids = torch.ones(2, 5, dtype=torch.long)
    fed = {"decoder_input_ids": ids[:, :2]} if backbone.encoder_decoder else {}
    with torch.no_grad():
        plain = backbone.model(input_ids=ids, use_cache=False, **fed).logits
        with compiled(backbone.model):
            again = backbone.model(input_ids=ids, use_cache=False, **fed).logits
            made = len(traced)
            backbone.model(input_ids=ids.repeat(1, 2), use_cache=False, **fed)
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)
    layers = len(repeated(backbone.model))
    assert made <= (4 if backbone.encoder_decoder else 1) and layers == (4 if backbone.encoder_decoder else 2)
    assert len(traced) == made or backbone.encoder_decoder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama"], indirect=True)
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler on this machine")
def test_real_code_trains_the_same(tiny: Any) -> None:
    """Made by torch's own compiler."""
    plain, made = both(tiny, "o_lora")
    for name, tensor in plain.items():
        torch.testing.assert_close(made[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_without_a_compiler_the_way_out_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the layers are as they were."""

    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(module.torch, "compile", partial(torch.compile, backend=fail))
    with pytest.raises(SetupError, match=r"train\.compile: .*no compiler found.*set it to false"):
        run_stage_in_memory(tiny, {"name": "sin_lora", "rank": 4}, TASKS, None, compile=True)
    assert not any("forward" in layer.__dict__ for layer in repeated(tiny.backbone.model))


def test_weights_in_pieces_are_not_compiled(flags: MakeFlags) -> None:
    """ZeRO 3."""
    fields = {"order": "roget,snippets", "train": {"compile": True, "zero_stage": 3}}
    with pytest.raises(SpecError, match=r"train\.compile: true works with train.zero_stage 0, 1 or 2"):
        resolve("laptop", [merge(flags.spec("sin_lora", "llama"), fields)])
