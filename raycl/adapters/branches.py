"""Branches on a backbone: install them, start the new one, read it out, take everything off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone
from raycl.adapters.carriers import carriers, stored_transposed
from raycl.adapters.targets import chosen

if TYPE_CHECKING:
    from peft import LoraConfig

    from raycl.adapters.stacked_lora import Mixer, StackedLora, Update
    from raycl.state.stage_state import Branch

# PEFT takes seconds to import, so it is imported where adapters are made: reading a spec or a stored sequence needs none.


@dataclass(frozen=True)
class LoraShape:
    """Size and place of a branch."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    """The modules to adapt, as `adapters.targets` reads them; none = the backbone's defaults."""


class Branches:
    """The LoRA layers of one backbone: frozen branches stacked, one current branch.

    `layers` maps the path of each adapted module to its layer. The backbone's own weights are never written.
    """

    def __init__(self, backbone: Backbone, shape: LoraShape, frozen: Sequence[Branch]) -> None:
        from peft import inject_adapter_in_model

        from raycl.adapters.stacked_lora import CURRENT, StackedLora

        self.backbone = backbone
        config = lora_config(backbone, shape)
        take_layer(config, StackedLora)
        inject_adapter_in_model(config, backbone.model, adapter_name=CURRENT)
        self.layers = seated(backbone)
        for path, layer in self.layers.items():
            layer.stack(path, frozen, backbone.dtype)
        self.count = len(frozen) + 1
        """Number of branches, the current one included."""

    def start(
        self,
        a: Mapping[str, Tensor] | None,
        b: Mapping[str, Tensor] | None,
        generator: torch.Generator,
        train: str = "AB",
    ) -> None:
        """Fill the current branch and decide which of its factors train.

        `a` / `b` are values to copy (shapes (rank, d_in) / (d_out, rank)); without them A is drawn uniformly from
        (-1/sqrt(d_in), 1/sqrt(d_in)), which is Kaiming-uniform with a = sqrt(5), and B is 0. `train` names the
        trainable factors: "AB", "B" or "".
        """
        for path, layer in self.layers.items():
            down, up = layer.down, layer.up
            down.data = kaiming(down.shape, generator) if a is None else a[path].clone()
            up.data = torch.zeros(up.shape) if b is None else b[path].clone()
            for weight, letter in ((down, "A"), (up, "B")):
                weight.data = weight.data.to(self.backbone.device, torch.float32)
                weight.requires_grad_(letter in train)

    def take(self, branch: Branch, shape: LoraShape) -> None:
        """Make another branch, of at most the rank of `shape`, the current one. Raises ValueError as `fitted`."""
        sizes = {path: (layer.down.shape[1], layer.up.shape[0]) for path, layer in self.layers.items()}
        fitting = fitted(branch, shape, sizes)
        self.start(fitting.a, fitting.b, torch.Generator(), train="")

    def set_a(self, a: Mapping[str, Tensor]) -> None:
        """Overwrite the current down-projections, (rank, d_in) each."""
        for path, value in a.items():
            weight = self.layers[path].down
            weight.data.copy_(value.to(weight))

    def mix_by(self, mixer: Mixer | None) -> None:
        """Let `mixer` weigh the branches in every layer; none = plain sum."""
        for layer in self.layers.values():
            layer.mixer = mixer

    def update_by(self, updates: Mapping[str, Update]) -> None:
        """Put updates in the place of the branches' sum, by the layers' paths."""
        for path, update in updates.items():
            self.layers[path].update = update

    def off(self) -> AbstractContextManager[None]:
        """The bare backbone, as long as the context lasts: no layer adds anything."""
        return _off(self.layers.values())

    def current(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of the current A and B of every layer, fp32 on the CPU."""
        a = {path: _copy(layer.down) for path, layer in self.layers.items()}
        b = {path: _copy(layer.up) for path, layer in self.layers.items()}
        return a, b

    def remove(self) -> None:
        """Put the backbone's own modules back, untouched."""
        lift(self.backbone, self.layers)


def seat(backbone: Backbone, modules: Mapping[str, nn.Module]) -> None:
    """Put modules in the backbone's places, by their paths."""
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        setattr(backbone.model.get_submodule(parent), name, module)


def lift(backbone: Backbone, layers: Mapping[str, StackedLora]) -> None:
    """Put the backbone's own modules back in the places of LoRA layers, which stay as they are and may be seated again."""
    seat(backbone, {path: layer.get_base_layer() for path, layer in layers.items()})
    if hasattr(backbone.model, "peft_config"):
        del backbone.model.peft_config


def seated(backbone: Backbone) -> dict[str, StackedLora]:
    """The LoRA layers that are on the backbone, by path."""
    from raycl.adapters.stacked_lora import StackedLora

    return {path: layer for path, layer in backbone.model.named_modules() if isinstance(layer, StackedLora)}


@contextmanager
def bare(backbone: Backbone) -> Iterator[None]:
    """The base model alone, whoever put branches on it: as long as the context lasts, none of them adds anything.

    Raises ValueError where the backbone's own weights train: then the base model is not there.
    """
    if (first := trained_itself(backbone)) is not None:
        raise ValueError(f"the base model is not there: its own weights train, such as {first}")
    with _off(seated(backbone).values()):
        yield


def trained_itself(backbone: Backbone) -> str | None:
    """The first of the backbone's own weights that trains; none = the base model is there, whatever is put on it."""
    own = (name for name, weight in backbone.model.named_parameters() if weight.requires_grad and ".lora_" not in name)
    return next(own, None)


def fitted(branch: Branch, shape: LoraShape, sizes: Mapping[str, tuple[int, int]]) -> Branch:
    """The same function as a branch of another rank and alpha on more modules: zeros fill up, and B takes over the scale.

    `sizes` has d_in and d_out of every adapted module by path. Raises ValueError for a module that is not among them, for
    factors of other sizes, and for a higher rank.
    """
    from raycl.state.stage_state import Branch

    if extra := sorted(branch.a.keys() - sizes.keys()):
        raise ValueError(f"it adapts {len(extra)} modules that the method does not, such as {extra[0]}")
    if branch.rank > shape.rank:
        raise ValueError(f"its rank is {branch.rank}; allowed: at most method.rank, {shape.rank}")
    scale = (branch.alpha / branch.rank) / (shape.alpha / shape.rank)
    lacking = shape.rank - branch.rank
    a, b = {}, {}
    for path, (d_in, d_out) in sizes.items():
        down, up = branch.a.get(path), branch.b.get(path)
        if down is None or up is None:
            a[path], b[path] = torch.zeros(shape.rank, d_in), torch.zeros(d_out, shape.rank)
            continue
        if (down.shape[1], up.shape[0]) != (d_in, d_out):
            raise ValueError(f"{path}: is {down.shape[1]} to {up.shape[0]} in it, and {d_in} to {d_out} in the model")
        a[path] = nn.functional.pad(down, (0, 0, 0, lacking))
        b[path] = nn.functional.pad(up * scale, (0, lacking))
    return Branch(shape.rank, shape.alpha, a, b)


def refusal(backbone: Backbone, targets: tuple[str, ...] | None) -> str | None:
    """Why PEFT puts no adapters on modules that can carry a branch, in its words; none if it does. It knows model types that
    use the weights of some modules without calling them."""
    try:
        Branches(backbone, LoraShape(1, 1.0, targets=targets), []).remove()
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def lora_config(backbone: Backbone, shape: LoraShape) -> LoraConfig:
    """PEFT's configuration of one branch."""
    from peft import LoraConfig

    return LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,  # pyright: ignore[reportArgumentType]  declared as an int, but any number will do
        lora_dropout=shape.dropout,
        target_modules=list(chosen(backbone, shape.targets)),
        bias="none",
        init_lora_weights=False,
        task_type="SEQ_2_SEQ_LM" if backbone.encoder_decoder else "CAUSAL_LM",
    )


def take_layer(config: LoraConfig, layer: type[nn.Module]) -> None:
    """Let PEFT put `layer` in the place of modules that can carry a branch, where it would put its own LoRA layer.

    PEFT has no public way: its guide on custom models names this method, and calls it experimental. It is called here and
    nowhere else. Raises RuntimeError where PEFT does not have it.
    """
    import peft

    register = getattr(config, "_register_custom_module", None)
    if register is None:
        raise RuntimeError(
            f"peft {peft.__version__} has no LoraConfig._register_custom_module, through which raycl's LoRA layer takes the "
            "place of PEFT's. Install the version in requirements.lock, or change raycl/adapters/branches.py:take_layer."
        )
    register(dict.fromkeys(carriers(), layer))


def adapter_config(backbone: Backbone, branch: Branch, base_name: str | None) -> dict[str, Any]:
    """The content of a branch's `adapter_config.json`: plain PEFT, loadable without raycl.

    Rank, alpha and modules are the branch's own, so any method with a branch has one. `base_name` is where the base model
    is, none in a store, whose content must not depend on that.
    """
    config = lora_config(backbone, LoraShape(branch.rank, branch.alpha, targets=tuple(branch.a)))
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    config.fan_in_fan_out = any(stored_transposed(backbone.model.get_submodule(path)) for path in branch.a)
    config.init_lora_weights = True
    config.lora_dropout = 0.0
    values = config.to_dict()
    return {key: _plain(value) for key, value in values.items() if not key.startswith("_")}


def prompt_config(backbone: Backbone, length: int, base_name: str) -> dict[str, Any]:
    """The content of `adapter_config.json` of a soft prompt of `length` vectors in front of the input, as PEFT's prompt
    tuning has it; of an encoder-decoder on the encoder's side alone."""
    from peft import PromptTuningConfig

    values = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM" if backbone.encoder_decoder else "CAUSAL_LM",
        num_virtual_tokens=length,
        token_dim=backbone.width,
        num_transformer_submodules=1,
        base_model_name_or_path=base_name,
        inference_mode=True,
    ).to_dict()
    return {key: _plain(value) for key, value in values.items() if not key.startswith("_")}


def kaiming(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform in (-1/sqrt(d_in), 1/sqrt(d_in)), shape (rank, d_in): Kaiming-uniform with a = sqrt(5)."""
    return (torch.rand(tuple(shape), generator=generator) * 2 - 1) / shape[1] ** 0.5


@contextmanager
def _off(layers: Iterable[StackedLora]) -> Iterator[None]:
    """Nothing is added by these layers, as long as the context lasts."""
    before = [(layer, layer.update) for layer in layers]
    for layer, _ in before:
        layer.update = _nothing
    try:
        yield
    finally:
        for layer, update in before:
            layer.update = update


def _nothing(x: Tensor) -> None:
    """The update of a layer that adds nothing."""


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32).clone().contiguous()


def _plain(value: Any) -> Any:
    """JSON form of PEFT's config values: sets become sorted lists, enums their value."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return getattr(value, "value", value)
