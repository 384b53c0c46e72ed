"""What `model.precision: auto` means on the machine at hand: bf16 where bf16 is multiplied natively, else fp32.

On a CPU without native bf16, torch's bf16 products are 3 to 5 times slower than fp32 for whole prompts and about 40 times
for single tokens (measured on 2 AVX2-only cores).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]
NATIVE_ON_CPU = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""CPU features that multiply bf16: Intel's AMX, AVX512-BF16 (Intel, AMD), Arm's BF16 and its SVE form."""
NATIVE_ON_CUDA = 8
"""Major compute capability from which CUDA devices multiply bf16 (Ampere)."""


def native_precision(gpus: int = 0) -> Precision:
    """The faster precision where this run trains; `gpus` are those of the cluster.

    A GPU of this machine decides if there is one; GPUs on other machines only are taken for Ampere or newer; else the CPU.
    """
    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability()[0] >= NATIVE_ON_CUDA
    else:
        native = gpus > 0 or cpu_multiplies_bf16()
    return "bf16" if native else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions that multiply bf16, and torch's CPU library uses them."""
    features = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(features.get(name) for name in NATIVE_ON_CPU)


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    memory: int
    """Bytes."""


def gpus() -> list[Gpu]:
    """The GPUs that this process may use."""
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(properties.name, properties.total_memory) for properties in found]


def torch_version() -> str:
    """torch's version with what it was built for."""
    return torch.__version__


def accelerator() -> str:
    """What this machine computes with, in words: its GPUs, or its CPU; and the precision it is fastest in."""
    if found := gpus():
        return f"{', '.join(gpu.name for gpu in found)} ({native_precision()})"
    return f"none, CPU {torch.backends.cpu.get_cpu_capability()} ({native_precision()})"
