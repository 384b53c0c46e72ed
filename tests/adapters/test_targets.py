"""Entries of `method.targets` as paths of modules."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from raycl.adapters.targets import chosen, read_targets, summed_up
from raycl.methods.registry import method_params
from raycl.models.load import LoadedModel

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
T5 = ["q", "k", "v", "o", "wi", "wo"]


def last(paths: tuple[str, ...]) -> set[str]:
    """The last names of paths."""
    return {path.rpartition(".")[2] for path in paths}


def test_all_linear_is_every_linear_module_but_the_head(tiny: LoadedModel, family: str) -> None:
    """As PEFT means it; the embedding is none."""
    paths = chosen(tiny.backbone, ["all-linear"])
    assert last(paths) == set(LLAMA if family == "llama" else T5)
    everything = chosen(tiny.backbone, ["re:.*"])
    assert set(everything) - set(paths) == {"lm_head"}


def test_names_and_expressions_choose_paths_in_the_models_order(tiny: LoadedModel, family: str) -> None:
    """Each path once, whatever chooses it; none = the defaults."""
    value = "v_proj" if family == "llama" else "v"
    query = "q_proj" if family == "llama" else "q"
    order = [path for path, _ in tiny.backbone.model.named_modules()]
    both = chosen(tiny.backbone, [value, f"re:.*[.]({value}|{query})", value])
    assert both == chosen(tiny.backbone, None) == tuple(sorted(both, key=order.index))
    assert last(both) == {query, value}
    whole = both[0]
    assert chosen(tiny.backbone, [whole]) == (whole,)


@pytest.mark.parametrize("entry", ["no_such_module", "re:q_proj", "re:nothing.*"])
def test_an_entry_that_chooses_nothing_is_an_error(tiny: LoadedModel, entry: str) -> None:
    """An expression must match the whole path."""
    with pytest.raises(ValueError, match="names no module"):
        chosen(tiny.backbone, [entry])


def test_a_text_is_a_list_of_one_entry_and_lists_stay() -> None:
    """So that keys do not depend on how it was written."""
    params = method_params("o_lora")
    assert params.model_validate({"name": "o_lora", "targets": "all-linear"}) == params.model_validate(
        {"name": "o_lora", "targets": ["all-linear"]}
    )
    assert params.model_validate({"name": "o_lora", "targets": ["q", "v"]}).at(1)["targets"] == ["q", "v"]
    assert read_targets(None) is None
    with pytest.raises(ValidationError, match="no regular expression"):
        params.model_validate({"name": "o_lora", "targets": "re:(q"})


def test_paths_are_summed_up_by_what_is_no_number() -> None:
    """Layers count, in the order in which they come."""
    paths = ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj", "h10.x", "layers.1.v_proj", "layers.11.q_proj"]
    assert list(summed_up(paths).items()) == [("layers.*.q_proj", 3), ("layers.*.v_proj", 2), ("h10.x", 1)]
