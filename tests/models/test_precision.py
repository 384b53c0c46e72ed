"""`model.precision: auto`, with the machine replaced by a stand-in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raycl.models.load import load_model
from raycl.models.precision import native_precision
from raycl.sections import ModelSpec
from raycl.sequence.resolve import resolve

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets what this machine seems to be: CPU features, and the compute capability of its GPU (none = no GPU)."""

    def become(*features: str, capability: tuple[int, int] | None = None) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return become


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", "bf16", "sve_bf16"])
def test_a_cpu_that_multiplies_bf16_gets_it(machine: Machine, feature: str) -> None:
    machine("avx2", feature)
    assert native_precision() == "bf16"


def test_an_avx2_cpu_gets_fp32(machine: Machine) -> None:
    machine("avx", "avx2", "fma3", "avx512_f")
    assert native_precision() == "fp32"


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_decides_over_its_host(machine: Machine, capability: tuple[int, int], precision: str) -> None:
    machine("avx2", "avx512_bf16", capability=capability)
    assert native_precision(gpus=1) == precision


def test_gpus_elsewhere_in_the_cluster_get_bf16(machine: Machine) -> None:
    machine("avx2")
    assert native_precision(gpus=4) == "bf16"


def test_the_laptop_preset_is_resolved_before_any_key(machine: Machine) -> None:
    """The spec that makes the keys names a precision; what the user says wins."""
    machine("avx2")
    assert resolve("laptop", [{"order": "demo"}], gpus=0).model.precision == "fp32"
    said = [{"order": "demo", "model": {"precision": "bf16"}}]
    assert resolve("laptop", said, gpus=0).model.precision == "bf16"
    machine("avx512_bf16")
    assert resolve("laptop", [{"order": "demo"}], gpus=0).model.precision == "bf16"


def test_nothing_is_loaded_with_an_open_precision() -> None:
    with pytest.raises(ValueError, match="still 'auto'"):
        load_model(ModelSpec(name="packaged", precision="auto"), "cpu")
