"""Which modules get adapters in which family: found by structure, and the same as the tables that they replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from raycl.models.load import load_model
from raycl.models.targets import holds_all, query_and_value
from raycl.sections import ModelSpec
from tests.kit.odd_models import FAMILIES, NO_DEFAULT, REFUSED, save_odd

Q_AND_V = ("q_proj", "v_proj")
FUSED = ("query_key_value",)
IN_OLDER_VERSIONS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "opt", "bart"), Q_AND_V),
    **dict.fromkeys(("t5", "flan_t5", "mt5"), ("q", "v")),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon", "falcon_grouped"), FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    "phi3": ("qkv_proj",),
    "mpt": ("Wqkv",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
}
"""What raycl's own table and PEFT's named by the model's type; the keys of stages stand for it."""
LATENT = ("kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj")
NEW = {"mbart": Q_AND_V, "deepseek_v3": LATENT, **dict.fromkeys(NO_DEFAULT, ())}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REFUSED])
def test_the_targets_of_a_family(family: str, tmp_path: Path) -> None:
    """Query and value, or the one matrix that holds both; the same as before in every family that had a default."""
    model = load_model(ModelSpec(name=str(save_odd(family, tmp_path)), precision="fp32"), "cpu")
    assert not model.faults
    assert model.backbone.targets == (IN_OLDER_VERSIONS | NEW)[family]


class Config:
    """A configuration of four heads."""

    num_attention_heads = 4

    def get_text_config(self) -> Config:
        """Itself."""
        return self


def with_children(kind: str, **widths: tuple[int, int]) -> nn.Module:
    """A module of a class of that name, with linear children of those widths."""
    module = type(kind, (nn.Module,), {})()
    for name, (d_in, d_out) in widths.items():
        module.add_module(name, nn.Linear(d_in, d_out))
    return module


def found(*called: str, **modules: nn.Module) -> tuple[str, ...]:
    """The targets in a model of those modules, of whose linear ones all but `called` are called."""
    model = nn.Module()
    model.config = Config()  # pyright: ignore[reportAttributeAccessIssue]  transformers' models have one
    for name, module in modules.items():
        model.add_module(name, module)
    linear = [path for path, one in model.named_modules() if isinstance(one, nn.Linear)]
    return query_and_value(model, [path for path in linear if path not in called])


@pytest.mark.parametrize(
    ("names", "targets"),
    [
        ("q_proj k_proj v_proj o_proj", ("q_proj", "v_proj")),
        ("Wq Wk Wv dense", ("Wq", "Wv")),
        ("query_proj key_proj value_proj out_proj", ("query_proj", "value_proj")),
        ("project_q project_k project_v", ("project_q", "project_v")),
        ("q_lin k_lin v_lin", ("q_lin", "v_lin")),
        ("q_a_proj q_b_proj kv_a_proj kv_b_proj o_proj", ("kv_a_proj", "kv_b_proj", "q_a_proj", "q_b_proj")),
        ("in_proj_qkvz in_proj_ba out_proj", ("in_proj_qkvz",)),
        ("key value receptance output", ()),
        ("gate_proj up_proj down_proj", ()),
        ("Wi Wo", ()),
    ],
)
def test_projections_are_known_by_the_parts_of_their_names(names: str, targets: tuple[str, ...]) -> None:
    """Whatever stands around them, and whatever the module is called that holds them."""
    assert found(block=with_children("Block", **dict.fromkeys(names.split(), (8, 8)))) == targets


@pytest.mark.parametrize(
    ("kind", "made", "targets"),
    [
        ("GPT2Attention", 24, ("inner",)),
        ("GPTBigCodeAttention", 8 + 2 * 2, ("inner",)),
        ("GroupedAttention", 8 + 2 * 2 * 2, ("inner",)),
        ("GatedAttention", 16 + 1, ()),
        ("WideAttention", 32, ()),
        ("GPT2MLP", 24, ()),
    ],
)
def test_a_fused_projection_without_a_name_is_known_by_its_width(
    kind: str, made: int, targets: tuple[str, ...]
) -> None:
    """(heads + 2 kv heads) * head_dim, of 4 heads of width 2, in a module that is called attention."""
    assert found(block=with_children(kind, inner=(8, made), outer=(8, 8))) == targets


def test_modules_that_no_pass_calls_are_left_out_by_their_paths() -> None:
    """An image encoder beside the language model: names alone would reach into it."""
    names = ("q_proj", "k_proj", "v_proj")
    parts: dict[str, Callable[[], nn.Module]] = {
        kind: lambda kind=kind: with_children(kind, **dict.fromkeys(names, (8, 8))) for kind in ("Text", "Image")
    }
    unused = [f"image.{name}" for name in names]
    assert found(*unused, text=parts["Text"](), image=parts["Image"]()) == ("text.q_proj", "text.v_proj")
    assert found(text=parts["Text"](), image=parts["Image"]()) == ("q_proj", "v_proj")


def test_a_layer_that_reads_the_keys_of_another_is_attention_too() -> None:
    """Where a block has queries only, it is known by the others of its class."""
    layers = {name: with_children("One", **dict.fromkeys(("q_proj", "v_proj"), (8, 8))) for name in ("first",)}
    later = type(layers["first"])()
    later.add_module("q_proj", nn.Linear(8, 8))
    assert found(**layers, later=later) == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("made", "heads", "fused"),
    [
        (36, 3, True),  # queries, keys and values of all heads
        (20, 3, True),  # one head of keys and values for all queries
        (28, 3, True),
        (36, 1, True),
        (24, 3, False),  # half a head
        (12, 3, False),  # queries alone
        (44, 3, False),  # more than three of each
        (36, 5, False),  # 12 features are not those of five heads
        (36, 0, False),
        (36, None, False),
    ],
)
def test_queries_keys_and_values_in_one_module(made: int, heads: object, fused: bool) -> None:
    """Of 12 features."""
    assert holds_all(made, 12, heads) is fused
