"""Multiply-adds from shapes: by hand, and as torch counts them in a pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raycl.models.counts import Batch, Products, count
from raycl.models.shapes import KNOWN, configuration, empty
from raycl.sections import ModelSpec
from raycl.sequence.costs import Trained, training
from raycl.testing.case import ADAPTED
from raycl.testing.tiny import WIDTH
from raycl.testing.toys import make_toy_task
from tests.kit.products import BATCH, BOTH, DECODER

WORDS = 4 + 3 + 5 * 14
"""The tiny vocabulary: special tokens, labels' words, and the words of five toy tasks."""


@pytest.fixture
def counted(tiny_folders: dict[str, Path]) -> Any:
    """The tiny models' counts, by family."""

    def of(family: str) -> Products:
        model, config = empty(ModelSpec(name=str(tiny_folders[family]), precision="fp32"))
        return count(model, config, ADAPTED[family])

    return of


def test_forward() -> None:
    """Linear modules for each token, attention for each pair, logits for the answer (and the token after it)."""
    # 10 tokens of 100, 2 rows of 25 pairs of 2, 2 x 4 predictions of 20
    assert DECODER.forward(BATCH) == 1_000 + 100 + 160
    # branches of ranks 3 in all: 10 tokens of 30
    assert DECODER.forward(BATCH, 3) == DECODER.forward(BATCH) + 300
    # beside: 6 answer tokens of 70, 2 x 9 pairs of 3, 2 x 15 of 4; 6 predictions
    assert BOTH.forward(BATCH) == 1_000 + 100 + 420 + 54 + 120 + 120
    assert BOTH.forward(BATCH, 3) == BOTH.forward(BATCH) + 300 + 6 * 18


@pytest.mark.parametrize("field", ["source", "head", "pairs", "branch"])
def test_every_kind_of_product_counts(field: str) -> None:
    """Twice as many of one kind are more in all."""
    more = replace(DECODER, **{field: 2 * getattr(DECODER, field)})
    assert more.forward(BATCH, 1) > DECODER.forward(BATCH, 1)


def test_a_tiny_llama_by_hand(counted: Any) -> None:
    """Two layers of 48: q 16, k and v 8, o back from 16, three times 64; four heads of 4."""
    layer = 48 * 16 + 2 * 48 * 8 + 16 * 48 + 3 * 48 * 64
    branch = 2 * ((48 + 16) + (48 + 8))
    assert counted("llama") == Products(2 * layer, 0, 48 * WORDS, 2 * 2 * 16, 0, 0, branch, 0, 2, 0)


def test_a_tiny_t5_by_hand(counted: Any) -> None:
    """Two and two layers of 48: attention 24 wide (four heads of 6), 64 between; cross-attention reads its keys and values
    from the source."""
    attention, between = 4 * 48 * 24, 2 * 48 * 64
    source = 2 * (attention + between) + 2 * (2 * 48 * 24)
    answer = 2 * (attention + 2 * 48 * 24 + between)
    # q and v in the encoder, v of cross-attention; q and v of the decoder's own and q of cross-attention
    branch, answer_branch = 2 * 3 * (48 + 24), 2 * 3 * (48 + 24)
    each = 2 * 2 * 24
    assert counted("t5") == Products(source, answer, 48 * WORDS, each, each, each, branch, answer_branch, 2, 2)
    assert WIDTH == 48


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_forward_pass_is_what_torch_counts(tiny_folders: dict[str, Path], counted: Any, family: str) -> None:
    """To the last product, for any sizes: torch counts two operations for each."""
    model, config = empty(ModelSpec(name=str(tiny_folders[family]), precision="fp32"))
    for batch in (Batch(2, 7, 2), Batch(3, 11, 4)):
        ids = torch.zeros(batch.rows, batch.source, dtype=torch.long, device="meta")
        answer: dict[str, Any] = {"decoder_input_ids": ids[:, : batch.answer]}
        fed = answer if config.is_encoder_decoder else {"logits_to_keep": batch.answer + 1}
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, **fed)
        assert counter.get_total_flops() == 2 * counted(family).forward(batch)


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_training_step_is_about_what_torch_counts(
    tiny_folders: dict[str, Path], counted: Any, family: str, earlier: int
) -> None:
    """Forward and back with a branch and `earlier` ones: never more than estimated, and not much less.

    Nothing goes back below the first layer's branches, which in a model of two layers is a part that shows.
    """
    from tests.kit.stage_counts import installed, one_batch

    module, encoder = installed(tiny_folders[family], {"name": "inc_lora", "rank": 2}, earlier)
    inputs, batch = one_batch(encoder, make_toy_task(1), rows=4)
    with FlopCounterMode(display=False) as counter:
        module(inputs)[0].backward()
    estimated = 2 * training(counted(family), batch, Trained(2 * earlier, 2)).products
    assert 0.8 * estimated < counter.get_total_flops() <= estimated


def test_shapes_of_the_published_models_are_known() -> None:
    """Their weights come to what the papers say, without a network."""
    sizes = {"google-t5/t5-large": 737_668_096, "meta-llama/Llama-2-7b-hf": 6_738_415_616}
    sizes |= {"meta-llama/Llama-2-13b-hf": 13_015_864_320, "meta-llama/Meta-Llama-3-8B": 8_030_261_248}
    for name, parameters in sizes.items():
        model, _ = empty(ModelSpec(name=name))
        assert sum(one.numel() for one in model.parameters()) == parameters
    assert {configuration(ModelSpec(name=name)).model_type for name in KNOWN} == {"t5", "llama"}


@pytest.mark.parametrize(
    ("name", "positions"), [("meta-llama/Llama-2-7b-hf", 4096), ("meta-llama/Meta-Llama-3-8B", 8192)]
)
def test_positions_of_known_models(name: str, positions: int) -> None:
    """As their model cards have them; transformers' default for the type is another one."""
    assert configuration(ModelSpec(name=name)).max_position_embeddings == positions
