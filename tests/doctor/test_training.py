"""DeepSpeed, and the gradients of all engines: right ones agree, a planted wrong one does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from raycl.doctor import training
from raycl.doctor.finding import Places
from raycl.models import precision
from raycl.models.precision import Gpu
from raycl.train.agreement import Twice, disagreements, gradients
from raycl.train.workers import Workers

HERE = Places()
PLANTED = """
import sys
if "raycl.train.agreement" in " ".join(sys.orig_argv):
    from raycl.train.engine_deepspeed import DeepSpeedEngine
    backward = DeepSpeedEngine.backward

    def wrong(self, loss):
        backward(self, 1.5 * loss if self.zero == 2 else loss)

    DeepSpeedEngine.backward = wrong
"""
"""An engine that is wrong at one stage: put where every new interpreter reads it."""


def test_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version; where it is absent, a machine of several GPUs cannot do without."""
    found = training.deepspeed(HERE)
    assert found.outcome == "ok" and "not needed on a CPU" in found.found
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for gpus, outcome in (([], "warning"), ([Gpu("NVIDIA H100", 1)] * 2, "failed")):
        monkeypatch.setattr(precision, "gpus", lambda gpus=gpus: gpus)
        found = training.deepspeed(HERE)
        assert (found.outcome, "not installed" in found.found) == (outcome, True)
        assert "pip install" in found.fix


def test_the_reference_is_what_autograd_gives() -> None:
    """Two micro-batches of two passes each, in one process: the mean of their losses' gradients."""
    module = Twice()
    loss = torch.zeros(())
    for batch in range(2):
        inputs = torch.randn(2, 8, generator=torch.Generator().manual_seed(10 * batch))
        loss = loss + (module(inputs, False) + module(inputs + 1, True)) / 2
    loss.backward()
    found = gradients("torch", False, Workers())
    assert set(found) == {"both.weight", "second.weight"}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert found[name] == pytest.approx(parameter.grad.flatten().tolist(), abs=1e-7)


def test_what_differs_is_named() -> None:
    """By engine, parameter and share of the norm; a gradient that is missing is as far away as can be."""
    like = {"a": [3.0, 4.0], "b": [1.0]}
    assert disagreements({"torch": like, "ZeRO 1": like}) == []
    near = {"a": [3.0, 4.0 + 1e-5], "b": [1.0]}
    assert disagreements({"torch": like, "ZeRO 1": near}) == []
    wrong = {"a": [3.0, 4.5], "b": []}
    assert disagreements({"torch": like, "ZeRO 2": wrong}) == [
        "ZeRO 2, a: 1.0e-01 of its norm apart",
        "ZeRO 2, b: inf of its norm apart",
    ]


@pytest.mark.slow
def test_two_processes_agree_until_a_wrong_gradient_is_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At ZeRO 2 alone: that stage is named, in both precisions, and nothing else."""
    found = training.gradients(HERE)
    assert found.outcome == "ok", found
    assert "torch, ZeRO 0, ZeRO 1, ZeRO 2, ZeRO 3 agree in fp32 and bf16" in found.found
    (tmp_path / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(filter(None, sys.path))}")
    found = training.gradients(HERE)
    assert found.outcome == "failed"
    assert "fp32: ZeRO 2, both.weight: 5.0e-01" in found.found and "bf16: ZeRO 2, second.weight" in found.found
    assert "ZeRO 1" not in found.found and "ZeRO 3" not in found.found
    assert "do not train with that engine" in found.fix


def test_processes_that_do_not_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is bounded, and what is left is killed."""
    monkeypatch.setattr(training, "GRADIENT_SECONDS", 0.2)
    found = training.gradients(HERE)
    assert found.outcome == "failed" and "no end after 0.2 s" in found.found


def test_processes_that_break_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line that they said."""
    monkeypatch.setattr(training.sys, "executable", "/bin/false")
    found = training.gradients(HERE)
    assert found.outcome == "failed" and "they said nothing" in found.found
