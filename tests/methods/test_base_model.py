"""The base model beside every method: its own logits, with the method on it and left as it was."""

from __future__ import annotations

import pytest
import torch

from raycl.state.stage_state import StageState
from raycl.testing.probes import (
    answer_logits,
    batch_of,
    encoder_of,
    largest_difference,
    make_method,
    same_part,
    served_logits,
)
from raycl.testing.toys import make_toy_task
from raycl.train.module import StageModule
from raycl.train.passes import TokenMean
from raycl.train.workers import Workers
from tests.kit.cases import CASES


def test_the_base_model_is_there_with_every_method_on_it(case, trained, tiny, toy_tasks, run_stage):
    """In a second stage `base` says what the bare model says; the method is not asked, and says the same as before."""
    examples = toy_tasks[1].test
    inputs = batch_of(tiny, examples)
    real = inputs.labels != -100
    bare = answer_logits(tiny, None, inputs)
    if not tiny.backbone.encoder_decoder:
        bare = [row[-int(count) - 1 : -1] for row, count in zip(bare, real.sum(dim=1), strict=True)]

    def look(module, encoder):
        before, labels = module.predict(inputs)
        base = module.base(inputs)
        assert torch.equal(module.read(inputs, module.method)[0], before) and not base.requires_grad
        rows = [row[keep].float() for row, keep in zip(base, labels != -100, strict=True)]
        return largest_difference(rows, bare), (base - before).abs().max().item()

    if "W" in (case.trains or ""):
        with pytest.raises(ValueError, match="base model is not there: its own weights train, such as"):
            run_stage(tiny, case.params, toy_tasks, trained[0].state, base_kl=0.5)
        return
    result = run_stage(tiny, case.params, toy_tasks, trained[0].state, probe=look, base_kl=0.5, loss="eaft")
    assert all(same <= 1e-5 for same, _ in result.probes) and result.probes[1][1] > 1e-3
    raw = [record["terms"]["base_kl"]["raw"] for record in result.log]
    assert len(raw) > 1 and all(0 <= one < 100 for one in raw[1:]) and max(raw) > 1e-7


def test_measuring_the_distance_from_the_base_model_changes_no_bit(case, trained, tiny, toy_tasks, run_stage):
    """The part is the same; the gauge is there unless the base model's own weights train."""
    result = run_stage(tiny, case.params, toy_tasks, trained[0].state, drift_rows=5)
    assert same_part(result.part, trained[1].part)
    added = result.gauges.keys() - trained[1].gauges.keys()
    assert added == (set() if "W" in (case.trains or "") else {"kl_to_base"}) and "kl_to_base" not in trained[1].gauges
    assert all(value > 1e-5 for value in result.gauges.values())


def test_an_untrained_branch_is_no_way_from_the_base_model(tiny, toy_tasks):
    """B = 0: exactly 0."""
    method = make_method(CASES["o_lora"].params)
    method.install(tiny.backbone, StageState())
    try:
        encoder = encoder_of(tiny)
        mean = TokenMean(StageModule(tiny.backbone, method), encoder, 3, Workers())
        assert mean.kl_to_base(encoder.encode(toy_tasks[0].train)) == 0
    finally:
        method.remove()


def test_the_distance_from_the_base_model_by_another_way(tiny, run_sequence):
    """sum p (ln p - ln p0) over the answers' tokens of the whole training set, in fp64, from the served state and from the
    bare model; `drift_rows` of them if there are more, which are drawn."""
    params, tasks = CASES["o_lora"].params, [make_toy_task(1, distinct=6, repeats=1, spread=3)]
    result = run_sequence(tiny, params, tasks, drift_rows=6)[0]
    examples = tasks[0].train
    now = served_logits(tiny, params, result.state, examples)
    bare = answer_logits(tiny, None, batch_of(tiny, examples))
    apart, tokens = [], []
    for one, example, other in zip(now, examples, bare, strict=True):
        count = len(encoder_of(tiny).encode([example])[0].answer)
        rows = slice(None) if tiny.backbone.encoder_decoder else slice(-count - 1, -1)
        p, p0 = one[rows].double().log_softmax(-1), other[rows].double().log_softmax(-1)
        apart.append(float((p.exp() * (p - p0)).sum()))
        tokens.append(count)
    assert result.gauges["kl_to_base"] == pytest.approx(sum(apart) / sum(tokens), rel=1e-4)
    few = run_sequence(tiny, params, tasks, drift_rows=1)[0].gauges["kl_to_base"]
    assert any(few == pytest.approx(one / count, rel=1e-4) for one, count in zip(apart, tokens, strict=True))
