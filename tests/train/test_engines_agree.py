"""Plain torch takes the steps that DeepSpeed takes at ZeRO stage 0: bit for bit in one process on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raycl.models.load import LoadedModel
from raycl.testing.probes import tensors_of
from raycl.testing.ranks import Job, Pair, make_odd_tasks
from raycl.testing.toys import make_toy_task, run_sequence_in_memory, run_stage_in_memory
from tests.kit.cases import CASES

LIKE: dict[str, dict[str, Any]] = {
    "o_lora": {},
    "gain_lora_over_o": {"micro_batch_size": 2},
    "migu_over_sin": {},
    "seq_ft": {"weight_decay": 0.1},
    "prog_prompt": {"max_grad_norm": 0.01},
    "lorac": {"optimizer": "muon", "weight_decay": 0.1},
}
"""Cases of the shared matrix, and settings that an engine has a part in."""


@pytest.mark.parametrize("name", list(LIKE))
def test_both_engines_end_with_the_same_bits(tiny: LoadedModel, name: str) -> None:
    """`benchmarks/digests.py --engine` shows the same of every case of the matrix."""
    parts = []
    for engine in ("deepspeed", "torch"):
        torch.manual_seed(0)
        settings = CASES[name].train | LIKE[name] | {"engine": engine}
        parts.append(tensors_of(run_stage_in_memory(tiny, CASES[name].params, [make_toy_task(1)], **settings).part))
    assert parts[0].keys() == parts[1].keys() and parts[0]
    for place, tensor in parts[0].items():
        assert torch.equal(tensor, parts[1][place]), place


@pytest.mark.parametrize("name", ["gain_lora_over_o", "am_lora_nr"])
def test_both_engines_round_and_drop_alike(tiny_bf16: LoadedModel, name: str) -> None:
    """Over a base model in bf16, with dropout in the branches: the same bits again."""
    parts = []
    for engine in ("deepspeed", "torch"):
        torch.manual_seed(0)
        params = CASES[name].params | {"dropout": 0.3}
        result = run_stage_in_memory(tiny_bf16, params, [make_toy_task(1)], **CASES[name].train | {"engine": engine})
        parts.append(tensors_of(result.part))
    assert parts[0] and all(torch.equal(tensor, parts[1][place]) for place, tensor in parts[0].items())


@pytest.mark.parametrize("name", ["osf", "osf_full"])
def test_sharded_directions_do_what_whole_ones_do(tiny: LoadedModel, name: str) -> None:
    """At ZeRO stage 3 the kept directions, larger than what trains, are in pieces until they are used."""
    params, tasks = CASES[name].params | {"dropout": 0.0}, [make_toy_task(1), make_toy_task(2)]
    losses = []
    for zero in (0, 3):
        results = run_sequence_in_memory(tiny, params, tasks, lr=1e-3, engine="deepspeed", zero_stage=zero)
        losses.append([step["loss"] for result in results for step in result.log])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][-1] != losses[0][0]


@pytest.mark.slow
def test_two_workers_of_plain_torch_do_what_two_of_deepspeed_do(tiny_folders: Any, tmp_path_factory: Any) -> None:
    """The mean over two workers is the same two sums; both workers hold the same part."""
    tasks = make_odd_tasks()
    jobs = [
        Job(
            CASES["o_lora"].params | {"dropout": 0.0},
            {"batch_size": 4, "engine": engine},
            engine,
            tiny_folders["llama"],
        )
        for engine in ("deepspeed", "torch")
    ]
    pair = Pair(tmp_path_factory.mktemp("pair"), jobs, tasks)
    try:
        deepspeed, torch_0, torch_1 = (
            pair.outcomes(*which) for which in (("deepspeed", 0), ("torch", 0), ("torch", 1))
        )
    finally:
        pair.stop()
    for like, first, second in zip(deepspeed, torch_0, torch_1, strict=True):
        assert like.losses == pytest.approx(first.losses, abs=1e-6) and like.losses
        for name, tensor in like.tensors.items():
            assert torch.allclose(tensor, first.tensors[name], atol=1e-6) and torch.equal(
                first.tensors[name], second.tensors[name]
            )
