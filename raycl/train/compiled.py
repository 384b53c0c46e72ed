"""The layers that a model repeats, compiled while a stage trains: one piece of code for all of them (`train.compile`).

A whole model takes minutes to compile and is as many copies of one layer; compiled layer by layer, with sizes left open, its
code is made once for all layers, batches and lengths. What a stage's branches look like is compiled into it, so every stage
makes its own. Results differ from those of uncompiled layers by round-off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from raycl.errors import SetupError, first_line


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """The model with compiled layers, as long as the context lasts; afterwards it is as it was.

    Raises SetupError for code that cannot be made here, such as without a C++ compiler.
    """
    layers = repeated(model)
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        yield
    except Exception as error:
        if (reason := _of_the_compiler(error)) is None:
            raise
        raise SetupError(
            f"train.compile: the model's layers could not be compiled ({reason}); install a C++ compiler, or set it to false"
        ) from error
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own
        # A process compiles a function for only so many kinds of layers; the next stage's are others.
        torch.compiler.reset()


def repeated(model: nn.Module) -> list[nn.Module]:
    """The model's layers: the modules of every list that stands in no other list, of an encoder and of a decoder."""
    lists = [(f"{path}.", module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [found for path, found in lists if not any(path != other and path.startswith(other) for other, _ in lists)]
    return [layer for found in outer for layer in found]


def _of_the_compiler(error: Exception) -> str | None:
    """Why compiling failed; none where what was compiled did."""
    from torch._dynamo.exc import TorchDynamoException

    return first_line(getattr(error, "inner_exception", error)) if isinstance(error, TorchDynamoException) else None
