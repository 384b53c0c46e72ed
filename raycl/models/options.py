"""What `model.quantization` and `model.attention` need of the machine, and what they make of loading."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raycl.errors import SpecError, one_message
from raycl.sections import ModelSpec

HINT = "Nothing was trained. Change the settings, or install what is missing, and run the same command again."


def require_options(spec: ModelSpec, device: str) -> None:
    """Raise SpecError with every option that `device` cannot do or that needs a package which is not there."""
    if problems := [*_quantization(spec, device), *_attention(spec, device)]:
        raise SpecError(one_message(f"the model {spec.name}", problems, HINT))


def loading_options(spec: ModelSpec, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` gets beside what it gets for every model. Quantised weights are made on their `device`."""
    options: dict[str, Any] = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    if spec.quantization != "none":
        options |= {"quantization_config": _bits(spec, dtype), "device_map": {"": device}}
    return options


def leave_out_unsound_kernels() -> None:
    """Keep this process from cuDNN's attention; PyTorch then takes one of its own kernels for `sdpa`.

    On Hopper GPUs its backward pass gives NaN for batches of 64, 192, 320, ... tokens that have a mask, from PyTorch 2.11 on
    (pytorch/pytorch#196678): a run ended there with a loss of NaN at the first batch as wide as that.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def take_faster_kernels() -> None:
    """Let `sdpa` on a CPU compute in fp32 where a bf16 model trains; the result is rounded to bf16 as before.

    PyTorch's bf16 kernel is as fast as the fp32 one forward, but several times slower on the way back: 14 ms against 3 ms a
    layer for 8 rows of 64 tokens, 9 heads of 64, on a CPU with bf16 instructions (PyTorch 2.15), a quarter of a training
    step of the packaged model. Without gradients nothing changes. May be called again and again.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not isinstance(plain, _WideOnTheWayBack):
        ALL_ATTENTION_FUNCTIONS.register("sdpa", _WideOnTheWayBack(plain))


@dataclass(frozen=True)
class _WideOnTheWayBack:
    """transformers' attention function, in fp32 for bf16 queries (B, H, S, d) on a CPU that need a gradient."""

    plain: Callable[..., tuple[Tensor, Tensor | None]]

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **further: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The output (B, S, H, d) in the query's dtype, and no weights."""
        if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
            return self.plain(module, query, key, value, attention_mask, **further)
        wide = {name: _wide(one) for name, one in further.items()}
        with torch.autocast("cpu", enabled=False):
            out, weights = self.plain(module, query.float(), key.float(), value.float(), _wide(attention_mask), **wide)
        return out.to(query.dtype), weights


def _wide(value: Any) -> Any:
    """A tensor of numbers in fp32; masks of truth values, and whatever else, as they are."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _bits(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """bitsandbytes' settings: LLM.int8, or NF4 with its constants quantised too, as QLoRA has it."""
    from transformers import BitsAndBytesConfig

    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    how: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **how)


def _quantization(spec: ModelSpec, device: str) -> Iterator[str]:
    """What is wrong with `model.quantization` here."""
    if spec.quantization == "none":
        return
    field = f"model.quantization: {spec.quantization}"
    if not device.startswith("cuda"):
        yield f"{field} works on CUDA only, and this runs on {device}; leave it at none, or run where there is a GPU"
    if importlib.util.find_spec("bitsandbytes") is None:
        yield f"{field} needs the package bitsandbytes, which is not installed; run `pip install bitsandbytes`"


def _attention(spec: ModelSpec, device: str) -> Iterator[str]:
    """What is wrong with `model.attention` here."""
    if spec.attention != "flash_attention_2":
        return
    field = f"model.attention: {spec.attention}"
    if not device.startswith("cuda"):
        yield f"{field} works on CUDA only, and this runs on {device}; take sdpa or eager, or leave it at auto"
    if spec.precision == "fp32":
        yield f"{field} computes in bf16, and model.precision is fp32; take sdpa or eager, or set model.precision to bf16"
    if importlib.util.find_spec("flash_attn") is None:
        yield f"{field} needs the package flash-attn, which is not installed; install it, or take sdpa"
