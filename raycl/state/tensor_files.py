"""Named tensors to safetensors bytes and back. torch is imported on first use: looking up keys needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycl.errors import StoreError, shown

if TYPE_CHECKING:
    import torch

DTYPES = frozenset(["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"])
"""The element types a store accepts."""


def encode_tensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """The safetensors file of named tensors, moved to the CPU; equal tensors give equal bytes in any dict order.

    Raises ValueError naming a tensor of an element type not in `DTYPES`, a sparse one, or one with an empty name.
    """
    import torch
    from safetensors.torch import save

    packed = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if not name or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"tensor {name!r} of {tensor.dtype} cannot be stored: allowed are {sorted(DTYPES)}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"tensor {name!r} is sparse and cannot be stored: make it dense")
        # A copy: views of one storage (slices of a stacked matrix, tied weights) are stored in full.
        packed[name] = tensor.detach().to("cpu", copy=True).contiguous()
    # One metadata entry: the format writes several in arbitrary order. `pt` is what PEFT and transformers look for.
    return save(packed, metadata={"format": "pt"})


def decode_tensors(data: bytes, where: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, names sorted, on the CPU. Raises StoreError naming the file `where`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        loaded = load(data)
    except (SafetensorError, ValueError, KeyError, AssertionError, TypeError, OverflowError) as error:
        raise StoreError(
            f"{where} is not a safetensors file ({error}). Delete its stage's folder and run again"
        ) from None
    # Copies get torch's memory alignment; the parser's buffers have any.
    return {name: loaded[name].clone() for name in sorted(loaded)}


def require_finite(tensors: dict[str, torch.Tensor], where: str) -> None:
    """Raises StoreError naming the first tensor with a NaN or an infinity, and `where` it is."""
    import torch

    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise StoreError(
                f"{where}: {bad} of {tensor.numel()} values of tensor {shown(name)} are NaN or infinite; only finite "
                "tensors are stored. If training diverged, lower its learning rate; if a stored file is at fault, "
                "delete its stage's folder and run again"
            )
