"""Stage states in random numbers, always the same: what they are has no part in what a step costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from raycl.adapters.backbone import Backbone
from raycl.adapters.branches import Branches, LoraShape
from raycl.methods.am_lora import SELECTOR
from raycl.methods.gain_lora import GATE, GATE_BASIS, GainLoraParams
from raycl.methods.registry import method_class, method_params
from raycl.methods.slao import TUNED_B
from raycl.state.stage_state import Branch, StagePart, StageState

Extra = Callable[[Backbone, list[Branch]], list[dict[str, Tensor]]]
"""The tensors of every part beside its branch, from at least one branch."""


def made_up_branches(backbone: Backbone, shape: LoraShape, count: int) -> list[Branch]:
    """So many branches of a shape."""
    branches = Branches(backbone, shape, ())
    sizes = {path: (layer.down.shape, layer.up.shape) for path, layer in branches.layers.items()}
    branches.remove()
    draw = torch.Generator().manual_seed(0)

    def one() -> Branch:
        a = {path: torch.randn(down, generator=draw) / down[1] ** 0.5 for path, (down, _) in sizes.items()}
        b = {path: 1e-3 * torch.randn(up, generator=draw) for path, (_, up) in sizes.items()}
        return Branch(shape.rank, shape.alpha, a, b)

    return [one() for _ in range(count)]


def made_up_state(name: str, backbone: Backbone, rank: int, tasks: int) -> StageState:
    """The state of a method after so many tasks, as far as training steps read it; `rank` is that of all branches."""
    branches = made_up_branches(backbone, LoraShape(rank, 32.0), tasks)
    extra = EXTRA[name](backbone, branches) if name in EXTRA and branches else [{} for _ in branches]
    state, kind = StageState(), method_class(name)
    last_only = kind.carries(method_params(name).model_validate({"name": name})) == "last"
    for index, branch in enumerate(branches):
        state = state.append(StagePart(f"task{index}", branch, extra[index]), last_only)
    return state


def _gates(backbone: Backbone, branches: list[Branch]) -> list[dict[str, Tensor]]:
    """A gate for every branch, and bases that together fill half of the spaces of the gates' features."""
    draw, hidden, count = torch.Generator().manual_seed(2), GainLoraParams().gate_hidden, len(branches)
    widths = [backbone.width, *hidden, backbone.width]
    bases = [torch.linalg.qr(torch.randn(width, width // 2, generator=draw))[0] for width in widths]
    parts = []
    for index in range(count):
        layers = [torch.randn(out, d, generator=draw) / d**0.5 for d, out in pairwise(widths)]
        weights = [*layers, torch.randn(1, widths[-1], generator=draw)]
        tensors = {f"{GATE}{level}": weight for level, weight in enumerate(weights)}
        for level, basis in enumerate(bases):
            first, last = (basis.shape[1] * place // count for place in (index, index + 1))
            tensors[f"{GATE_BASIS}{level}"] = basis[:, first:last].clone()
        parts.append(tensors)
    return parts


def _selectors(backbone: Backbone, branches: list[Branch]) -> list[dict[str, Tensor]]:
    """The last part holds the selectors of all branches and of the zero branch."""
    draw, rows = torch.Generator().manual_seed(2), len(branches) + 1
    last = {
        f"{SELECTOR}{path}": 1e-2 * torch.randn(rows, len(up), generator=draw) for path, up in branches[-1].b.items()
    }
    return [{} for _ in branches[:-1]] + [last]


def _tuned(backbone: Backbone, branches: list[Branch]) -> list[dict[str, Tensor]]:
    """Every part holds B as it was fine-tuned, beside the merged one."""
    return [{TUNED_B + path: up for path, up in branch.b.items()} for branch in branches]


EXTRA: dict[str, Extra] = {"gain_lora": _gates, "am_lora": _selectors, "slao": _tuned}
"""The methods whose training steps read more of a state than its branches."""
