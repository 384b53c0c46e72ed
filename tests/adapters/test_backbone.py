"""What a layer's positions are: which region it reads, and which of its positions are real."""

from __future__ import annotations

import pytest
import torch

from raycl.adapters.backbone import Inputs

READS = {
    "llama": {"model.layers.0.self_attn.q_proj": "source", "model.layers.1.self_attn.v_proj": "source"},
    "t5": {
        "encoder.block.0.layer.0.SelfAttention.v": "source",
        "decoder.block.0.layer.0.SelfAttention.q": "target",
        "decoder.block.0.layer.0.SelfAttention.v": "target",
        "decoder.block.0.layer.1.EncDecAttention.q": "target",
        "decoder.block.0.layer.1.EncDecAttention.k": "source",
        "decoder.block.0.layer.1.EncDecAttention.v": "source",
        "decoder.block.0.layer.2.DenseReluDense.wi": "target",
    },
}


def test_cross_attention_values_read_the_encoder(tiny, family):
    """Keys and values of cross-attention read source tokens; every other layer of a decoder reads the answer."""
    assert {path: tiny.backbone.region(path) for path in READS[family]} == READS[family]
    modules = dict(tiny.backbone.model.named_modules())
    assert READS[family].keys() <= modules.keys()


def test_real_positions_are_those_of_mask_and_labels():
    """Source positions come from the mask, target positions from the labels, which must be there."""
    ones = torch.tensor([[1, 1, 0]])
    inputs = Inputs(torch.zeros(1, 3), ones, ones, torch.tensor([[7, -100]]))
    assert inputs.region_mask("source").tolist() == [[True, True, False]]
    assert inputs.region_mask("target").tolist() == [[True, False]]
    with pytest.raises(ValueError, match="only known for a batch with labels"):
        Inputs(torch.zeros(1, 3), ones, ones).region_mask("target")


def test_embeddings_come_before_any_layer(tiny):
    """`embed` looks up the table rows as they are; width and device are the table's."""
    ids = torch.tensor([[4, 5, 0]])
    table = tiny.backbone.model.get_input_embeddings().weight
    assert torch.equal(tiny.backbone.embed(ids), table[ids])
    assert tiny.backbone.width == table.shape[1] and tiny.backbone.device == table.device
