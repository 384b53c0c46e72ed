"""What the rows on evaluation set raycl beside: one branch after the other, and a stage as the papers' scripts run it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from raycl.methods.common.base import StageInfo
from raycl.methods.registry import build, method_params
from raycl.models.load import LoadedModel
from raycl.tasks.task import Task
from raycl.testing.probes import answer_logits, batch_of, largest_difference
from raycl.testing.toys import StageResult
from tests.kit.cases import CASES
from tests.kit.scripts import script

answering, papers = script("answering"), script("papers_stage")


def test_branch_by_branch_is_the_stacked_function(
    tiny: LoadedModel, toy_task: Callable[..., Task], run_sequence: Callable[..., list[StageResult]]
) -> None:
    """Gated and not, after three tasks: the same logits, while the context lasts and after it."""
    toy_tasks = [toy_task(number) for number in (1, 2, 3)]
    for name in ("gain_lora_over_o", "o_lora"):
        params = CASES[name].params
        state = run_sequence(tiny, params, toy_tasks)[-1].state
        method = build(method_params(params["name"]).model_validate(params), StageInfo(3, 3, "toy3", 0))
        method.serve(tiny.backbone, state)
        try:
            inputs = batch_of(tiny, toy_tasks[0].test)
            stacked = answer_logits(tiny, method, inputs)
            with answering.branch_by_branch(tiny.backbone.model):
                looped = answer_logits(tiny, method, inputs)
            again = answer_logits(tiny, method, inputs)
        finally:
            method.remove()
        largest = max(row.abs().max().item() for row in stacked)
        assert 0 < largest_difference(stacked, looped) <= 1e-5 * largest
        assert largest_difference(stacked, again) == 0


def test_the_papers_batches_are_padded_on_the_left_and_learn_answers_alone() -> None:
    """Two rows of 3 and 2 tokens."""
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]},
        {"input_ids": [8, 9], "labels": [-100, 9]},
    ]
    found = papers.collated(rows, 0)
    assert torch.equal(found["input_ids"], torch.tensor([[5, 6, 7], [0, 8, 9]]))
    assert torch.equal(found["labels"], torch.tensor([[-100, -100, 7], [-100, -100, 9]]))
    assert torch.equal(found["attention_mask"], torch.tensor([[1, 1, 1], [0, 1, 1]]))
