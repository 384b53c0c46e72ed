"""What is said to be one function of the tokens is: then what prompts begin with may be read once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raycl.methods.common.base import one_function
from raycl.models.reading import Reading, read
from raycl.tasks.task import Task
from raycl.testing.tiny import load_tiny
from raycl.testing.toys import StageResult
from raycl.train.batches import Encoder, shared_start
from tests.kit.cases import CASES

INPUT_DEPENDENT = {"gain_lora", "am_lora", "sapt_lora", "prog_prompt", "l2p", "lfpt5", "route_lora"}
"""Gates, selectors, prompts and routes."""
ADAPTING = ("mbpa", "mbpa_hidden")
"""Cases that train a copy of their weights for each input."""


@pytest.mark.parametrize("name", CASES)
def test_a_common_beginning_changes_no_logits(
    name: str,
    run_sequence: Callable[..., list[StageResult]],
    toy_task: Callable[..., Task],
    tiny_folders: dict[str, Path],
) -> None:
    """The logits after each of several prompts, read whole and read behind what they begin with, after two stages."""
    tasks, tiny = [toy_task(number) for number in (1, 2)], load_tiny(tiny_folders["llama"], "fp32")
    last = run_sequence(tiny, CASES[name].params, tasks, epochs=2)[-1]
    method = last.method
    assert one_function(method) == (CASES[name].params["name"] not in INPUT_DEPENDENT and name not in ADAPTING)
    if not one_function(method):
        return
    method.serve(tiny.backbone, last.state)
    tiny.backbone.model.eval()
    try:
        encoder = Encoder(tiny.tokenizer, False, 64, 8)
        head = " ".join(example.prompt for example in tasks[0].test[:3]) + " "
        rows = encoder.encode([replace(example, head=head) for example in tasks[1].test[:5]])
        count, model = shared_start(rows), tiny.backbone.model
        assert count >= 8

        def said(begin: int, after: Reading | None = None) -> tuple[Reading, Tensor]:
            method.condition(encoder.collate(rows, "cpu", answers=False))
            inputs = encoder.collate(
                [replace(one, prompt=one.prompt[begin:], body=None) for one in rows], "cpu", answers=False
            )
            return read(model, {"input_ids": inputs.ids, "attention_mask": inputs.mask}, after)

        with torch.no_grad():
            method.condition(encoder.collate(rows[:1], "cpu", answers=False))
            ids = torch.tensor([rows[0].prompt[:count]])
            begin, _ = read(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            (_, shared), (_, whole) = said(count, begin), said(0)
        assert torch.allclose(shared, whole, atol=1e-4)
    finally:
        method.remove()
