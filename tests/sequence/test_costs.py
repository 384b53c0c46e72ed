"""Multiply-adds of passes and answers, against sums worked out by hand."""

from __future__ import annotations

from dataclasses import replace

from raycl.analysis.cost import Work
from raycl.sequence.costs import Trained, answering, reading, stepping, training
from raycl.spec import Beside
from tests.kit.products import BATCH, BOTH, DECODER


def test_a_frozen_base_costs_two_forward_passes() -> None:
    """And the branch that trains once more; all weights three; checkpointing one forward pass more."""
    forward = DECODER.forward(BATCH, 5)
    branch = training(DECODER, BATCH, Trained(3, 2))
    assert (branch.products, branch.layers) == (2 * forward + 10 * 2 * 10, 6)
    assert training(DECODER, BATCH, Trained(3, 2, again=True)).products == branch.products + forward
    linear = 10 * 100 + 8 * 20
    assert training(DECODER, BATCH, Trained(0, None)).products == 2 * DECODER.forward(BATCH) + linear
    assert training(DECODER, BATCH, Trained(0, 0)).products == 2 * DECODER.forward(BATCH)
    assert reading(DECODER, BATCH, Trained(3, 2)) == Work(forward, 3)
    assert BOTH.own(BATCH, 2) == 2 * (10 * 10 + 6 * 6)
    assert BOTH.own(BATCH, None) == 1_000 + 6 * 70 + 6 * 20


def test_passes_beside_the_plain_one_are_added() -> None:
    """Each by its length: one of twice the tokens reads twice the source, and each of its tokens meets twice as many."""
    trained = Trained(3, 2)
    plain = training(DECODER, BATCH, trained)
    assert stepping(DECODER, BATCH, trained, Beside()) == plain
    found = stepping(DECODER, BATCH, trained, Beside(read=(1.0, 2.0), trained=(1.0,)))
    twice = replace(BATCH, source=2 * BATCH.source)
    wanted = [plain, plain, reading(DECODER, BATCH, trained), reading(DECODER, twice, trained)]
    assert (found.products, found.layers) == (sum(one.products for one in wanted), sum(one.layers for one in wanted))


def test_answers_are_written_token_by_token() -> None:
    """The prompt once; then each token meets all that stands before it, and all weights are read for it."""
    found = answering(DECODER, BATCH, 0, weight_bytes=2.0)
    # the prompt gives the first of three tokens; two more meet 6 and 7 tokens
    assert found.products == 1_000 + 100 + 2 * 20
    assert found.written == 2 * (2 * (100 + 20) + (6 + 7) * 2)
    assert found.moved == 2.0 * (2 * (100 + 20) + 2 * (6 + 7) * 2)
    assert found.layers == 3 + 2 * 3
    beside = answering(BOTH, BATCH, 2, weight_bytes=4.0)
    assert beside.products == 10 * (100 + 20) + 100
    # three tokens of the decoder meet 5 read ones each, and 1, 2 and 3 of their own
    assert beside.written == 2 * (3 * (70 + 20 + 12) + 3 * 5 * 4 + 6 * 3)
    assert beside.layers == 3 + 3 * 2


def test_more_branches_are_never_cheaper() -> None:
    """In training and in answers, on both kinds of model."""
    for products in (DECODER, BOTH):
        trained = [training(products, BATCH, Trained(8 * stages, 8)).multiply_adds for stages in range(6)]
        answered = [answering(products, BATCH, 8 * stages, 2.0).multiply_adds for stages in range(6)]
        assert trained == sorted(set(trained)) and answered == sorted(set(answered))
