"""L2P: which prompts an input picks, what the pull is, where gradients go, and the diversity rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.methods.common.base import Step
from raycl.methods.l2p import KEYS, PICKED, PROMPTS, L2p, L2pParams
from raycl.state.stage_state import StagePart, StageState
from raycl.testing.probes import batch_of, make_method
from raycl.train.module import StageModule
from tests.kit.cases import CASES

TABLE = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]
"""Embeddings of four tokens, d = 2; token 0 is padding."""
KEYS_BY_HAND = [[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]
PROMPTS_BY_HAND = [[[10.0, 0.0], [11.0, 0.0]], [[20.0, 0.0], [21.0, 0.0]], [[30.0, 0.0], [31.0, 0.0]]]


def by_hand(stage: int = 2, picked: list[float] | None = None, **settings) -> L2p:
    """A pool of three prompts of two vectors, two of which are picked."""
    table = nn.Embedding.from_pretrained(torch.tensor(TABLE))
    model = nn.Module()
    model.get_input_embeddings = lambda: table
    method = make_method({"name": "l2p", "pool": 3, "length": 2, "picks": 2} | settings, stage)
    tensors = {PROMPTS: torch.tensor(PROMPTS_BY_HAND), KEYS: torch.tensor(KEYS_BY_HAND)}
    tensors |= {} if picked is None else {PICKED: torch.tensor(picked)}
    method.install(Backbone(model, (), False, 2), StageState((StagePart("toy1", tensors=tensors),)))
    return method


def batch(ids: list[list[int]]) -> Inputs:
    """Rows of prompt tokens; 0 is padding."""
    tokens = torch.tensor(ids)
    return Inputs(tokens, (tokens != 0).long(), (tokens != 0).long(), tokens)


def step(method: L2p, inputs: Inputs, labels: list[list[int]], rows: float) -> Step:
    """What `penalties` is given."""
    method.condition(inputs)
    nothing = torch.tensor(0.0)
    return Step(inputs, nothing, torch.tensor(labels), nothing, 0.0, lambda _: nothing, list, rows=rows)


def test_picks_by_hand():
    """Queries (3, 4), (0, 1) and (2, 2) have cosines (.6, .8, -.6), (0, 1, 0) and (.71, .71, -.71) with the keys."""
    method = by_hand()
    method.condition(batch([[0, 3], [0, 2], [1, 3]]))
    assert torch.allclose(method.similarity[:2], torch.tensor([[0.6, 0.8, -0.6], [0.0, 1.0, 0.0]]))
    assert method.similarity[2].tolist() == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)])
    assert method.picked[0].tolist() == [1, 0] and method.picked[1, 0] == 1
    soft = method.soft_prompt()
    assert soft.place == "front" and soft.vectors[0, :, 0].tolist() == [20, 21, 10, 11]


def test_padding_and_answers_stay_out_of_the_query():
    """The query is the mean over prompt tokens only: an answer token (3) and padding change nothing."""
    method = by_hand()
    tokens = torch.tensor([[0, 0, 1, 2, 3]])
    inputs = Inputs(tokens, torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 1, 0]]))
    method.condition(inputs)
    similarity = method.similarity
    method.condition(batch([[1, 2]]))
    assert torch.allclose(similarity, method.similarity)


def test_the_pull_by_hand():
    """-mean over the two real rows of the two picked cosines: -((.8 + .6) + (1 + 0)) / 2; the filler row is left out."""
    method = by_hand(pull=0.25)
    labels = [[-100, 5], [-100, 6], [-100, -100]]
    term = method.penalties(step(method, batch([[0, 3], [0, 2], [0, 1]]), labels, 2.0))["pull"]
    assert term.weight == 0.25 and term.raw.item() == pytest.approx(-1.2)
    halves = [
        method.penalties(step(method, batch([ids]), [label], 1.0))["pull"].raw.item()
        for ids, label in zip([[0, 3], [0, 2]], labels[:2], strict=True)
    ]
    assert sum(halves) / 2 == pytest.approx(-1.2)


def test_the_pull_moves_keys_towards_the_query():
    """d cos / dK_1 at q = (.6, .8), K_1 = (1, 0) is (0, .8); unpicked keys and the query's embeddings get none."""
    method = by_hand()
    method.penalties(step(method, batch([[0, 3]]), [[1, 2]], 1.0))["pull"].raw.backward()
    assert torch.allclose(method.pool.keys.grad, torch.tensor([[0.0, -0.8], [-0.3, 0.0], [0.0, 0.0]]), atol=1e-6)
    assert method.pool.prompts.grad is None


def test_only_picked_prompts_have_a_gradient(tiny, toy_tasks):
    """The cross-entropy reaches the prompts that were picked and no key; the query carries no gradient."""
    method = make_method(CASES["l2p"].params | {"picks": 1})
    method.install(tiny.backbone, StageState())
    module = StageModule(tiny.backbone, method)
    module(batch_of(tiny, toy_tasks[0].train[:1]))[0].backward()
    moved = method.pool.prompts.grad.flatten(1).any(dim=1)
    assert moved.nonzero().flatten().tolist() == method.picked.flatten().tolist()
    assert method.pool.keys.grad is None
    assert all(p.grad is None for p in tiny.backbone.model.parameters())


def test_every_row_picks_distinct_prompts(tiny, toy_tasks):
    """N different indices per row, and a pull between -N and N."""
    method = make_method(CASES["l2p"].params | {"pool": 6, "picks": 4})
    method.install(tiny.backbone, StageState())
    inputs = batch_of(tiny, [*toy_tasks[0].test, *toy_tasks[1].test])
    method.condition(inputs)
    assert all(len(set(row.tolist())) == 4 for row in method.picked)
    assert method.soft_prompt().vectors.shape == (8, 8, tiny.backbone.width)
    assert -4 <= method.similarity.gather(1, method.picked).sum(dim=1).mean() <= 4


def test_fp32_under_autocast():
    """Cosines keep fp32 precision under bf16 autocast."""
    method = by_hand()
    with torch.autocast("cpu", torch.bfloat16):
        method.condition(batch([[0, 3]]))
    assert method.similarity[0].tolist() == pytest.approx([0.6, 0.8, -0.6], abs=1e-6)


def test_diversity_avoids_what_earlier_stages_picked():
    """Scores (1 - c) h for c = (.6, .8, -.6): h = (.8, .2, 0) gives (.32, .04, 0), so prompts 2 and 1 are picked; in eval
    mode, and at stage 1, the plain rule holds."""
    method = by_hand(picked=[8.0, 2.0, 0.0], diversity=True)
    method.condition(batch([[0, 3]]))
    assert method.picked.tolist() == [[2, 1]]
    method.pool.eval()
    method.condition(batch([[0, 3]]))
    assert method.picked.tolist() == [[1, 0]]
    fresh = by_hand(diversity=True)
    fresh.condition(batch([[0, 3]]))
    assert fresh.picked.tolist() == [[1, 0]]


def test_picks_add_up_over_stages(tiny, toy_tasks, run_sequence):
    """Each stage adds N picks per training row to the counts of the stages before."""
    results = run_sequence(tiny, CASES["l2p_diverse"].params, toy_tasks)
    for stage, result in enumerate(results, start=1):
        assert result.part.tensors[PICKED].sum() == 2 * 16 * stage


def test_fixed_keys_are_the_means_of_the_first_prompts(tiny, toy_tasks, run_sequence):
    """TRACE's variant: the keys never move, and there is no pull."""
    results = run_sequence(tiny, CASES["l2p_fixed_keys"].params, toy_tasks[:2])
    start = results[0].before["extra.pool.prompts"].mean(dim=1)
    assert all(torch.equal(result.part.tensors[KEYS], start) for result in results)
    assert all(line["terms"] == {} for result in results for line in result.log)


def test_the_pull_raises_the_similarity(tiny, toy_tasks, run_stage):
    """Over a stage the picked keys come nearer to the inputs; the log shows a term between -N and N."""
    log = run_stage(tiny, CASES["l2p"].params, toy_tasks, epochs=10).log
    terms = [line["terms"]["pull"]["raw"] for line in log]
    assert terms[-1] < terms[0] - 0.1 and all(-2 <= term <= 2 for term in terms)


def test_more_picks_than_prompts_are_refused():
    """N distinct prompts need a pool of at least N."""
    with pytest.raises(ValueError, match="picks"):
        L2pParams(pool=2, picks=3)


def test_fresh_prompts_are_scaled_vocabulary_vectors(tiny):
    """`init_scale` scales the drawn embeddings and nothing else; keys are uniform in (-1, 1)."""
    pools = []
    for scale in (1.0, 0.01):
        method = make_method(CASES["l2p"].params | {"init_scale": scale})
        method.install(tiny.backbone, StageState())
        pools.append(method.pool)
    assert torch.allclose(pools[0].prompts * 0.01, pools[1].prompts)
    assert torch.equal(pools[0].keys, pools[1].keys) and pools[0].keys.abs().max() <= 1
    assert math.isclose(pools[0].keys.detach().std().item(), 3**-0.5, rel_tol=0.15)
