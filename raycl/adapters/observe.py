"""Watch adapted layers during a data pass: their inputs, and what the current branch makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from raycl.adapters.backbone import Inputs, Region
from raycl.adapters.branches import Branches
from raycl.adapters.moments import add_rows


class Watch:
    """Hooks on the layers of a backbone, and the batch at hand, which says what is padding."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches
        self.inputs: Inputs | None = None
        """The batch at hand; the method sets it before each forward pass."""
        self._hooks: list[Any] = []

    def release(self) -> None:
        """Take the hooks off."""
        while self._hooks:
            self._hooks.pop().remove()

    def rows(self, features: Tensor, region: Region) -> Tensor:
        """The rows (n, d) of a layer's features that stand for real tokens. Raises RuntimeError without a batch at hand."""
        if self.inputs is None:
            raise RuntimeError("a data pass must condition the method before each forward pass")
        return features[self.inputs.real(features, region)]


class LayerInputs(Watch):
    """Second moments of each adapted layer's own input, padding left out.

    Layers that are handed the very same tensor (q and v of one self-attention) share one moment, owned by the first of
    them. The input is taken at the layer itself: the queries and values of cross-attention read different tensors.
    """

    def __init__(self, branches: Branches, chunks: int) -> None:
        super().__init__(branches)
        self.chunks = chunks
        self.widths = {path: layer.down.shape[1] for path, layer in branches.layers.items()}
        self._owner: dict[str, str] = {}
        self._last: tuple[str, Tensor] | None = None

    def watch(self, moments: dict[str, Any], means: bool) -> None:
        """Hook every layer; during the pass, `moments` gains one moment per distinct layer input, named by its owner, and
        if `means` the mean of that input beside it."""
        self._owner = {}
        for path, layer in self.branches.layers.items():
            self._hooks.append(layer.register_forward_pre_hook(self._hook(path, moments, means)))

    def owners(self) -> dict[str, str]:
        """For each layer seen in the pass, the layer that owns its input's moment."""
        return dict(self._owner)

    def release(self) -> None:
        """Take the hooks off."""
        super().release()
        self._last = None

    def _hook(self, path: str, moments: dict[str, Any], means: bool) -> Any:
        region = self.branches.backbone.region(path)

        def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0]
            if self._last is not None and self._last[1] is features:
                self._owner[path] = self._last[0]
                return
            self._owner[path] = path
            self._last = (path, features)
            add_rows(moments, path, self.rows(features, region), self.chunks, means)

        return observe


class DownOutputs(Watch):
    """Second moments of z = A x in every adapted layer, A of the current branch, padding left out."""

    def watch(self, moments: dict[str, Any], prefix: str) -> None:
        """Hook every layer: during the pass `moments` gains C (r, r) of each, named by `prefix` and the layer's path."""
        for path, layer in self.branches.layers.items():
            self._hooks.append(layer.on_down(self._hook(path, prefix + path, moments)))

    def _hook(self, path: str, name: str, moments: dict[str, Any]) -> Callable[[Tensor], None]:
        region = self.branches.backbone.region(path)
        return lambda z: add_rows(moments, name, self.rows(z, region))
