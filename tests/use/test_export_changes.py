"""Exports that are not the served function: what they cost is measured, and what they are is what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from raycl import find_head, load
from raycl.state.store import Store
from raycl.tasks.load import load_tasks
from raycl.use.combined import added, truncated
from raycl.use.export import export
from raycl.use.forms import ExportChange, Form
from tests.kit.trained import NOT_EXACT, ORDER, Trained


@pytest.mark.parametrize("run", NOT_EXACT)
def test_an_approximation_says_what_it_costs(run: str, trained: Trained, tmp_path: Path) -> None:
    """Scores of both on the same examples, the served one as it is; the card has them and says that it is not exact."""
    head = find_head(str(trained(run)))
    done = export(head, tmp_path / "out", change=ExportChange("mean"))
    assert not done.exact and done.rank == 4
    with load(str(trained(run))) as served:
        assert [(one.task, one.served) for one in done.losses] == [
            (task, served.evaluate(task).score) for task in ORDER
        ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "No: the method weighs its branches anew" in card
    for one in done.losses:
        assert 0 <= one.exported <= 100 and one.examples == 6
        assert f"| {one.task} | {one.served:.1f} | {one.exported:.1f} |" in card


def test_the_mean_gate_by_hand(trained: Trained, tmp_path: Path) -> None:
    """B of each branch is scaled by the mean of its gate over the task's training inputs."""
    head = find_head(str(trained("gain_lora")))
    export(head, tmp_path / "out", task="snippets", change=ExportChange("mean"))
    (task,) = load_tasks(["snippets"], head.spec.data)
    with load(str(trained("gain_lora"))) as served:
        gates = [served.explain(example) for example in task.train]
    means = torch.tensor([one.mean for one in gates if one]).mean(dim=0)
    parts = [head.store.read(key).pair for key in head.stages]
    from safetensors.torch import load_file

    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path in parts[0].b:
        whole = torch.cat(
            [part.b[path] * part.alpha / part.rank * mean for part, mean in zip(parts, means, strict=True)], 1
        )
        assert torch.allclose(written[f"base_model.model.{path}.lora_B.weight"], whole, atol=1e-6)


def test_the_sum_of_branches_by_hand(trained: Trained) -> None:
    """Of each module: s_1 B_1 A_1 + s_2 B_2 A_2, within rounding."""
    head = find_head(str(trained("inc_lora")))
    parts = [Store(head.store.uri).read(key).pair for key in head.stages]
    one = added(parts)
    for path in one.a:
        by_hand = sum(part.alpha / part.rank * part.b[path] @ part.a[path] for part in parts)
        assert torch.allclose(one.alpha / one.rank * one.b[path] @ one.a[path], torch.as_tensor(by_hand), atol=1e-6)


def test_a_smaller_rank_is_the_nearest_one(trained: Trained, tmp_path: Path) -> None:
    """Of each module the truncated SVD of the whole product; all of the rank gives the sum back."""
    head = find_head(str(trained("inc_lora")))
    done = export(head, tmp_path / "out", change=ExportChange(compress=1))
    assert done.rank == 1 and [one.task for one in done.losses] == list(ORDER)
    assert "cut to rank 1" in (tmp_path / "out" / "README.md").read_text()
    whole = added([head.store.read(key).pair for key in head.stages])
    for rank in (1, 3, 4):
        small = truncated(whole, rank)
        for path in whole.a:
            update = (whole.alpha / whole.rank * whole.b[path] @ whole.a[path]).double()
            u, s, v = torch.linalg.svd(update, full_matrices=False)
            nearest = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
            assert torch.allclose((small.b[path] @ small.a[path]).double(), nearest, atol=1e-5)


@pytest.mark.parametrize("form", ["adapter", "model"])
def test_bf16_says_how_far_it_moves_the_logits(form: Form, trained: Trained, tmp_path: Path) -> None:
    """Files in bf16, rounded once from the exact ones; the change is that of the rounding."""
    from safetensors.torch import load_file

    head = find_head(str(trained("inc_lora")))
    exact, done = (export(head, tmp_path / dtype, form, change=ExportChange(dtype=dtype)) for dtype in ("fp32", "bf16"))
    assert exact.logits_change is None and done.logits_change is not None and 0 < done.logits_change < 1
    files = [next(one.folder.glob("*model.safetensors")) for one in (exact, done)]
    one, other = map(load_file, files)
    assert all(torch.equal(one[name].bfloat16(), other[name]) for name in one)
    assert re.search(r"no logit changes by more than \d", (tmp_path / "bf16" / "README.md").read_text())
