"""The base model beside every method: its own logits, with the method on it and left as it was."""

from __future__ import annotations

import pytest
import torch

from raycl.testing.probes import answer_logits, batch_of, largest_difference


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
        assert torch.equal(module._predict(inputs, module.method)[0], before) and not base.requires_grad
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
