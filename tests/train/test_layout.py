"""Which rows share a step, and who gets which of them."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.sections import Batches
from raycl.testing.toys import make_toy_task, run_stage_in_memory
from raycl.train.batches import Encoded
from raycl.train.engine import BatchShape
from raycl.train.layout import WINDOW, Layout, MicroBatch, even
from tests.kit.runs import assert_same_part

WAYS: tuple[Batches, ...] = ("shuffled", "like_length", "equal_tokens")


def draw(seed: int = 0) -> torch.Generator:
    """What an order is drawn from."""
    return torch.Generator().manual_seed(seed)


def row_of(tokens: int, index: int = 1) -> Encoded:
    """A row of so many tokens, of which one or two are its answer; `index` is the first of its prompt."""
    return Encoded((index,) * (tokens - 1 - tokens % 2), (2,) * (1 + tokens % 2))


def rows_of(sizes: list[int]) -> list[Encoded]:
    """Rows of these tokens, each with a prompt of its own."""
    return [row_of(size, index) for index, size in enumerate(sizes)]


def epoch(rows: list[Encoded], shape: BatchShape, how: Batches = "shuffled", seed: int = 0) -> list[Any]:
    """Per worker, the steps of one epoch."""
    return [list(Layout(rows, shape, how).epoch(draw(seed), rank)) for rank in range(shape.world)]


SIZES = st.lists(st.integers(3, 40), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99), st.sampled_from(WAYS))
def test_every_example_is_seen_once_per_epoch(sizes, micro, accumulation, world, seed, how):
    """Over all workers an epoch holds each example once; filler rows, and only they, have empty answers; the mean over
    micro-batches of (summed loss / tokens) is the token mean of the global batch. Steps are as many however rows are laid
    out, and a step has as many micro-batches on every worker."""
    batch = micro * accumulation * world
    rows = rows_of(sizes)
    workers = epoch(rows, BatchShape(batch, micro, world), how, seed)
    assert {len(steps) for steps in workers} == {-(-len(rows) // batch)}
    seen = []
    for step in zip(*workers, strict=True):
        assert all(len(share) == accumulation for share in step)
        parts: list[MicroBatch] = [m for share in step for m in share]
        real = [row for m in parts for row in m.rows if row.answer]
        seen += [row.prompt[0] for row in real]
        assert all(len(m.rows) == micro for m in parts) or how == "equal_tokens"
        assert {m.tokens for m in parts} == {sum(len(row.answer) for row in real) / len(parts)}
        assert {m.real for m in parts} == {len(real) / len(parts)}
    assert sorted(seen) == list(range(len(rows)))


def test_token_denominators_by_hand():
    """Answers of 1, 2 and 3 tokens, batch 4 in micro-batches of 2: 6 tokens over 2 micro-batches are 3 per micro-batch."""
    rows = [Encoded((index,), tuple(range(index + 1))) for index in range(3)]
    (steps,) = epoch(rows, BatchShape(4, 2, 1))
    assert len(steps) == 1 and [m.tokens for m in steps[0]] == [3.0, 3.0]
    assert [len(m.rows) for m in steps[0]] == [2, 2]
    filler = steps[0][1].rows[1]
    assert filler.answer == () and filler.prompt == steps[0][0].rows[0].prompt


def test_rows_that_count_by_their_mean_by_hand():
    """A row with `mean` counts as one token, each of its answer tokens 1 / 3 of its weight; a filler counts as none."""
    rows = [Encoded((1,), (5, 6, 7), weight=2.0, mean=True), Encoded((1,), (5, 6))]
    assert [(row.counts, row.token_weight) for row in rows] == [(1, 2 / 3), (2, 1.0)]
    assert Encoded((1,), (), mean=True).counts == 0
    ((step,),) = epoch(rows, BatchShape(4, 2, 1))
    assert [(m.tokens, m.real) for m in step] == [(1.5, 1.0)] * 2


@pytest.mark.parametrize("how", WAYS)
def test_workers_share_one_order(how: Batches) -> None:
    """Two workers see the halves of what one worker sees, batch by batch; another draw gives another order."""
    rows = rows_of([3 + index % 4 for index in range(16)])
    alone, pair = BatchShape(8, 2, 1), BatchShape(8, 2, 2)
    one = [[row for m in step for row in m.rows] for step in epoch(rows, alone, how)[0]]
    two = [
        [row for share in step for m in share for row in m.rows] for step in zip(*epoch(rows, pair, how), strict=True)
    ]
    assert one == two
    assert epoch(rows, alone, how) == epoch(rows, alone, how) != epoch(rows, alone, how, seed=1)


def steps_of(rows: list[Encoded], batch: int, how: Batches, seed: int = 0) -> list[list[int]]:
    """The steps of an epoch, as places of rows."""
    return Layout(rows, BatchShape(batch, batch, 1), how).steps(draw(seed))


def test_steps_of_like_length_by_hand() -> None:
    """Nine rows in batches of two: a plain draw leaves its last row for the last batch, the others are paired by their
    tokens, and the pairs are put in an order of their own."""
    rows = rows_of([9, 4, 7, 3, 8, 5, 6, 2, 9])
    generator = draw(3)
    plain = torch.randperm(9, generator=generator).tolist()
    pairs = sorted(plain[:8], key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
    wanted = [pairs[2 * place :][:2] for place in torch.randperm(4, generator=generator).tolist()]
    assert steps_of(rows, 2, "like_length", 3) == [*wanted, [plain[8]]]


def padded(rows: list[Encoded], steps: list[list[int]]) -> list[int]:
    """Tokens of each step, with padding."""
    return [len(step) * max(rows[i].tokens for i in step) for step in steps]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(0, 2**20))
def test_steps_of_like_length_pad_less(sizes: list[int], batch: int, seed: int) -> None:
    """The same from the same seed, and never more padding than in a plain draw of the same rows."""
    rows = rows_of(sizes)
    steps = steps_of(rows, batch, "like_length", seed)
    assert steps == steps_of(rows, batch, "like_length", seed)
    assert sum(padded(rows, steps)) <= sum(padded(rows, steps_of(rows, batch, "shuffled", seed)))


def test_rows_are_sorted_within_windows_only() -> None:
    """Of two windows of a draw each batch has its rows from one, and batches of both are mixed."""
    rows = rows_of([3 + index % 17 for index in range(4 * WINDOW)])
    first = {place for step in steps_of(rows, 2, "shuffled")[:WINDOW] for place in step}
    for how in WAYS[1:]:
        of_first = [len(first.intersection(step)) / len(step) for step in steps_of(rows, 2, how)]
        assert set(of_first) == {0, 1} and of_first != sorted(of_first) and of_first != sorted(of_first, reverse=True)


def test_steps_of_equal_tokens_by_hand() -> None:
    """Twelve rows of 12, 6 and 3 tokens at four a step are three steps: 12 + 12; 6, 6, 6, 6; and six of 3: 24, 24 and 18
    padded tokens. Batches of four rows would have 48, 24 and 12."""
    rows = rows_of([3, 12, 6, 3, 6, 3, 12, 3, 6, 3, 3, 6])
    steps = steps_of(rows, 4, "equal_tokens", 1)
    assert sorted(sorted(rows[i].tokens for i in step) for step in steps) == [[3] * 6, [6] * 4, [12] * 2]
    order = [rows[step[0]].tokens for step in steps]
    assert order != [rows[step[0]].tokens for step in steps_of(rows, 4, "equal_tokens", 2)]  # drawn
    # Two workers, two micro-batches each: six of 3 in parts of 2, 1, 2, 1 rows would be as good; one of 12 goes alone.
    parts = Layout(rows, BatchShape(4, 1, 2), "equal_tokens").parts([rows[1], rows[6]])
    assert [[(row.tokens, len(row.answer)) for row in part] for part in parts] == [
        [(12, 1)],
        [(12, 1)],
        [(11, 0)],
        [(11, 0)],
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 9))
def test_no_other_cut_has_a_smaller_largest_part(sizes: list[int], count: int) -> None:
    """Against all ways to cut so many sorted rows into so many parts."""
    sizes = sorted(sizes, reverse=True)
    count = min(count, len(sizes))
    parts = even(sizes, count)
    assert [i for part in parts for i in range(len(sizes))[part]] == list(range(len(sizes)))
    assert len(parts) == count and all(sizes[part] for part in parts)

    def largest(edges: tuple[int, ...]) -> int:
        return max((end - start) * sizes[start] for start, end in pairwise((0, *edges, len(sizes))))

    best = min(largest(edges) for edges in combinations(range(1, len(sizes)), count - 1))
    assert largest(tuple(part.start for part in parts[1:])) == best


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_steps_of_equal_tokens_depend_on_the_batch_alone(sizes, micro, accumulation, world, seed):
    """Workers and micro-batches share out the same steps, of no more padded tokens than batches of like length have at most;
    of micro-batches the largest may have a row more than its share."""
    rows = rows_of(sizes)
    shape = BatchShape(micro * accumulation * world, micro, world)
    steps = Layout(rows, shape, "equal_tokens").steps(draw(seed))
    assert steps == steps_of(rows, shape.batch, "equal_tokens", seed)
    longest = max(sizes)
    assert max(padded(rows, steps)) <= shape.batch * longest
    for worker in epoch(rows, shape, "equal_tokens", seed):
        for part in (part for step in worker for part in step):
            assert len(part.rows) * max(row.tokens for row in part.rows) <= (micro + 1) * longest


@pytest.mark.parametrize("how", WAYS)
def test_micro_batches_change_no_state(tiny: Any, how: Batches) -> None:
    """A stage in micro-batches of one row, or of what a step of about so many makes, ends as in whole batches."""
    tasks = [make_toy_task(1, spread=3)]
    params = {"name": "o_lora", "rank": 4}
    whole, cut = (
        run_stage_in_memory(
            tiny, params, tasks, None, batches=how, batch_size=4, micro_batch_size=micro, max_grad_norm=0.0
        )
        for micro in (4, 1)
    )
    assert_same_part(whole.state.newest, cut.state.newest, 2e-5)
