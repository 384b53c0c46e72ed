"""A base model without its weights: its modules and their shapes, enough to count what a run holds in memory."""

from __future__ import annotations

from dataclasses import dataclass

from raycl.adapters.backbone import Backbone
from raycl.adapters.carriers import carries_branch, widths
from raycl.adapters.targets import chosen
from raycl.models.counts import Products, count
from raycl.models.families import KEPT
from raycl.models.shapes import empty
from raycl.models.targets import query_and_value
from raycl.spec import RunSpec


@dataclass(frozen=True)
class Outline:
    """What a model and a method's part of it come to, in numbers."""

    parameters: int
    """Weights of the base model; a tied one counts once."""
    trained: int
    """Weights that one stage trains: those of a branch on every adapted module, of soft prompts, or all of the model. What
    else a method trains (gates, keys, scalars) is small beside them and left out."""
    width: int
    """Width of the token embeddings."""
    vocabulary: int
    products: Products
    """Multiply-adds of a forward pass."""


def outline(spec: RunSpec) -> Outline:
    """The numbers of a run's model; its weights are neither read nor fetched.

    Raises SpecError for what is no model, SetupError for one whose shapes are neither here nor known.
    """
    model, config = empty(spec.model)  # pyright: ignore[reportArgumentType]  # a frozen model has a hash
    linear = [path for path, module in model.named_modules() if carries_branch(module)]
    width = int(model.get_input_embeddings().weight.shape[1])
    backbone = Backbone(
        model=model,
        targets=KEPT.get(config.model_type) or query_and_value(model, linear),
        encoder_decoder=bool(config.is_encoder_decoder),
        width=width,
        regions=dict.fromkeys(linear),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Outline(
        parameters,
        _trained(spec, backbone, parameters),
        width,
        int(model.get_input_embeddings().weight.shape[0]),
        count(model, config, _adapted(spec, backbone)),
    )


def _adapted(spec: RunSpec, backbone: Backbone) -> tuple[str, ...]:
    """Paths of the modules that carry branches."""
    return chosen(backbone, getattr(spec.method, "targets", None)) if spec.method.adapts_modules() else ()


def _trained(spec: RunSpec, backbone: Backbone, parameters: int) -> int:
    """Weights that the optimizer of one stage owns."""
    method = spec.method
    soft = method.soft_tokens(len(spec.tasks)) * backbone.width
    if not method.adapts_modules():
        return soft or parameters
    sizes = [widths(backbone.model.get_submodule(path)) for path in _adapted(spec, backbone)]
    return soft + sum(method.branch_rank(d_in, d_out) * (d_in + d_out) for d_in, d_out in sizes)
