"""Features of the bare base model: which tokens, which layer, and nothing of padding, neighbours or branches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raycl.adapters.backbone import Inputs
from raycl.adapters.base_features import layers_of, mean_embedding, mean_hidden, pooled
from raycl.adapters.branches import Branches, LoraShape
from raycl.models.load import load_model
from raycl.sections import ModelSpec
from tests.kit.odd_models import save_odd


def inputs_of(*rows: list[int], left: int = 0, encoder_decoder: bool = False) -> Inputs:
    """Prompts of token ids as a batch, padded as the model wants it, and `left` columns more."""
    width = max(len(row) for row in rows) + left
    filled = [[0] * (width - len(row)) for row in rows]
    ids = [row + fill if encoder_decoder else fill + row for row, fill in zip(rows, filled, strict=True)]
    mask = torch.tensor([[int(one > 0) for one in row] for row in ids])
    return Inputs(torch.tensor(ids), mask, mask)


def test_a_mean_over_the_kept_tokens_only():
    """(1 + 3) / 2 and 5, whatever stands beside them."""
    states = torch.tensor([[[1.0], [3.0], [99.0]], [[99.0], [5.0], [99.0]]])
    found = pooled(states, torch.tensor([[1, 1, 0], [0, 1, 0]]))
    assert found.tolist() == [[2.0], [5.0]] and found.dtype == torch.float64


def test_embeddings_are_the_tables_rows(tiny):
    """The mean of the rows of the tokens, bit for bit alike with padding and beside a longer neighbour."""
    backbone = tiny.backbone
    table = backbone.model.get_input_embeddings().weight.detach().double()
    side = {"encoder_decoder": backbone.encoder_decoder}
    alone = inputs_of([7, 9], **side)
    found = mean_embedding(backbone, alone, alone.prompt_mask)
    assert torch.allclose(found[0], (table[7] + table[9]) / 2, atol=1e-15)
    beside = inputs_of([7, 9], [8, 7, 6, 5, 9], left=2, **side)
    assert torch.equal(mean_embedding(backbone, beside, beside.prompt_mask)[0], found[0])


@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_hidden_states_are_those_of_the_model(tiny, layer):
    """The mean of what transformers gives as hidden states after a layer (after the last one, before the final norm)."""
    backbone = tiny.backbone
    side = {"encoder_decoder": backbone.encoder_decoder}
    inputs = inputs_of([7, 9, 4], [8, 7, 6, 5, 9], **side)
    found = mean_hidden(backbone, inputs, inputs.prompt_mask, layer)
    seen: list[torch.Tensor] = []
    hook = layers_of(backbone)[layer - 1].register_forward_hook(lambda m, a, out: seen.append(out))
    reader = backbone.model.get_encoder() if backbone.encoder_decoder else backbone.model
    given = {"position_ids": (inputs.mask.cumsum(1) - 1).clamp(min=0)} if not backbone.encoder_decoder else {}
    whole = reader(input_ids=inputs.ids, attention_mask=inputs.mask, output_hidden_states=True, **given)
    hook.remove()
    states = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    if layer == 1:
        assert torch.equal(states, whole.hidden_states[1])
    wanted = [row[keep].double().mean(dim=0) for row, keep in zip(states, inputs.mask.bool(), strict=True)]
    assert torch.equal(found, torch.stack(wanted))
    wider = inputs_of([7, 9, 4], left=3, **side)
    assert (mean_hidden(backbone, wider, wider.prompt_mask, layer)[0] - found[0]).abs().max() < 1e-5


@torch.no_grad()
def test_a_partial_pass_runs_no_later_layer_and_leaves_no_hook(tiny):
    """By default a third of the depth, at least one layer: of two layers the second is not run."""
    layers = layers_of(tiny.backbone)
    assert len(layers) == 2
    ran: list[int] = []
    hooks = [one.register_forward_pre_hook(lambda m, a, i=i: ran.append(i)) for i, one in enumerate(layers)]
    before = [len(one._forward_hooks) for one in layers]
    inputs = inputs_of([7, 9], encoder_decoder=tiny.backbone.encoder_decoder)
    default = mean_hidden(tiny.backbone, inputs, inputs.prompt_mask, None)
    assert ran == [0] and [len(one._forward_hooks) for one in layers] == before
    assert torch.equal(default, mean_hidden(tiny.backbone, inputs, inputs.prompt_mask, 1))
    for hook in hooks:
        hook.remove()


def test_a_layer_that_is_not_there_is_named(tiny):
    """The message says how many there are."""
    inputs = inputs_of([7], encoder_decoder=tiny.backbone.encoder_decoder)
    with pytest.raises(ValueError, match=r"method.layer: 3; the model has 2 layers"):
        mean_hidden(tiny.backbone, inputs, inputs.prompt_mask, 3)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "bloom", "falcon", "phi3", "bart", "gemma3_text"])
@torch.no_grad()
def test_layers_are_found_in_other_families(name, tmp_path):
    """Wherever a family keeps its layers, both are found, and the first one's states depend on the tokens."""
    folder = save_odd(name, tmp_path / name)
    backbone = load_model(ModelSpec(name=str(folder), precision="fp32"), "cpu").backbone
    assert len(layers_of(backbone)) == 2
    inputs = inputs_of([7, 9, 4], [8, 7, 6], encoder_decoder=backbone.encoder_decoder)
    found = mean_hidden(backbone, inputs, inputs.prompt_mask, 1)
    assert found.isfinite().all() and (found[0] - found[1]).abs().max() > 1e-4


@torch.no_grad()
def test_branches_that_are_off_add_nothing(tiny):
    """Inside the context the states are the bare model's, bit for bit; after it, also by an error, the branch acts again."""
    backbone = tiny.backbone
    inputs = inputs_of([7, 9, 4], encoder_decoder=backbone.encoder_decoder)

    def states() -> torch.Tensor:
        return mean_hidden(backbone, inputs, inputs.prompt_mask, 1)

    bare = states()
    branches = Branches(backbone, LoraShape(4, 16), [])
    try:
        branches.start(None, None, torch.Generator().manual_seed(0))
        for layer in branches.layers.values():
            layer.up.data.fill_(1.0)
        with branches.off():
            assert torch.equal(states(), bare)
        assert (states() - bare).abs().max() > 1e-3
        with pytest.raises(RuntimeError, match="inside"), branches.off():
            raise RuntimeError("inside")
        assert (states() - bare).abs().max() > 1e-3
    finally:
        branches.remove()


def test_the_text_is_the_body_or_where_there_is_none_the_prompt():
    """Row by row; without any body, the prompt."""
    ones = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    plain = Inputs(ones, ones, ones)
    assert torch.equal(plain.text_mask, ones)
    bodies = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]])
    assert replace(plain, body_mask=bodies).text_mask.tolist() == [[0, 0, 1, 0], [1, 1, 1, 0]]
