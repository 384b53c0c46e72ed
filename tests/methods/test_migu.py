"""MIGU: magnitudes and masks by hand, what counts as a token, and its bounds: threshold 0, stage 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.magnitudes import Magnitudes, loudest
from raycl.methods.common.base import Gradients
from raycl.methods.migu import MiguParams
from raycl.state.stage_state import StageState
from raycl.testing.probes import batch_of, make_method, same_part
from tests.kit.cases import CASES

OVER = ("seq_ft", "sin_lora", "inc_lora", "o_lora")


class Toy(nn.Module):
    """An embedding and one linear module from 2 to 3 units, decoder-only."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(4, 2)
        self.up = nn.Linear(2, 3)
        self.tokens.weight.data = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]])
        self.up.weight.data = torch.tensor([[1.0, 0.0], [0.0, -3.0], [2.0, 1.0]])
        self.up.bias.data = torch.zeros(3)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.up(self.tokens(ids))


def toy_batch() -> Inputs:
    """Tokens 1 2 | 3 after one pad, and a filler row without an answer."""
    ids = torch.tensor([[0, 1, 2, 3], [1, 1, 1, 1]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    return Inputs(ids, mask, mask, torch.tensor([[-100, -100, -100, 3], [-100] * 4]))


@pytest.fixture
def toy():
    """MIGU at stage 2 around the toy model, threshold 0.5, as if installed over SeqFT."""
    model = Toy()
    method = make_method({"name": "migu", "over": "seq_ft", "threshold": 0.5}, 2)
    method.magnitudes = Magnitudes(Backbone(model, (), False, 2))
    return model, method


def masked(method, model) -> dict[str, torch.Tensor]:
    """What the gradients of ones become."""
    found = {}
    ones = Gradients(torch.ones_like, lambda p, value: found.update({id(p): value}), lambda tensors: list(tensors))
    method.gradients(ones)
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}


def test_the_mask_by_hand(toy):
    """x = (1,0), (0,1), (-1,2): sum |z| = (2, 9, 3), median 3, so unit 0 is quiet; pads and fillers do not count."""
    model, method = toy
    method.magnitudes.inputs = toy_batch()
    model(toy_batch().ids)
    assert method.magnitudes.take()["up"].tolist() == [2.0, 9.0, 3.0]
    model(toy_batch().ids)
    found = masked(method, model)
    assert found["up.weight"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    assert found["up.bias"].tolist() == [0.0, 1.0, 1.0]
    assert found.keys() == {"up.weight", "up.bias"}
    assert method.measures()["migu_kept"] == pytest.approx(2 / 3)


def test_micro_batches_add_up_and_workers_too(toy):
    """Two micro-batches are one; the sum over workers decides the mask; the next global batch starts from nothing."""
    model, method = toy
    method.magnitudes.inputs = toy_batch()
    for _ in range(2):
        model(toy_batch().ids)
    assert method.magnitudes.take()["up"].tolist() == [4.0, 18.0, 6.0]
    for _ in range(2):
        model(toy_batch().ids)
    found = {}

    def other_worker(tensors):
        for tensor in tensors:
            tensor += torch.tensor([90.0, 0.0, 0.0])

    method.gradients(Gradients(torch.ones_like, lambda p, value: found.update({id(p): value}), other_worker))
    assert found[id(model.up.weight)][:, 0].tolist() == [1.0, 1.0, 0.0]
    assert method.magnitudes.take() == {}


def test_passes_in_eval_mode_do_not_count(toy):
    """Data passes and the held-out loss leave the magnitudes alone."""
    model, method = toy
    method.magnitudes.inputs = toy_batch()
    model.eval()(toy_batch().ids)
    assert method.magnitudes.take() == {}


def test_the_threshold_is_a_quantile():
    """Of 1..5, tau = 0.5 keeps 3 and above; 0 keeps all; units that tie are kept together, so a silent branch trains."""
    sums = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])
    assert loudest(sums, 0.5).tolist() == [True, False, True, False, True]
    assert loudest(sums, 0.7).sum() == 2 and loudest(sums, 0.0).all() and loudest(sums, 1.0).sum() == 1
    assert loudest(torch.zeros(4), 0.7).all()


@pytest.mark.parametrize("over", OVER)
def test_default_thresholds_and_live_settings(over):
    """0.7, over O-LoRA 0.05; at stage 1 no threshold; the settings of other methods drop out."""
    params = MiguParams(over=over)
    assert "threshold" not in params.at(1)
    assert params.at(2)["threshold"] == (0.05 if over == "o_lora" else 0.7)
    assert ("rank" in params.at(2)) == (over != "seq_ft")
    assert ("lambda1" in params.at(2)) == (over == "o_lora")
    assert params.at(2) == MiguParams(over=over, threshold=params.tau).at(2)


@pytest.mark.parametrize("over", OVER)
def test_threshold_0_is_the_bare_method_and_so_is_stage_1(tiny, toy_tasks, run_sequence, over):
    """tau = 0 trains bit for bit what the masked method trains; any tau does at stage 1, and another from stage 2 on."""
    shape = {key: value for key, value in CASES["o_lora"].params.items() if key not in ("name", "lambda1", "lambda2")}
    own = {} if over == "seq_ft" else shape | ({"lambda1": 0.1} if over == "o_lora" else {})
    bare = run_sequence(tiny, {"name": over, **own}, toy_tasks[:2])
    none = run_sequence(tiny, {"name": "migu", "over": over, "threshold": 0.0, **own}, toy_tasks[:2])
    half = run_sequence(tiny, {"name": "migu", "over": over, "threshold": 0.5, **own}, toy_tasks[:2])
    assert all(same_part(ours.part, plain.part) for ours, plain in zip(none, bare, strict=True))
    assert same_part(half[0].part, bare[0].part) and not same_part(half[1].part, bare[1].part)


def test_how_a_batch_is_cut_and_sharded_does_not_decide_the_mask(tiny, toy_tasks, run_sequence, run_stage):
    """Micro-batches of 2, 4 or 8, gradients whole or sharded (ZeRO 2): the same branch up to rounding."""
    params = {"name": "migu", "over": "inc_lora", "threshold": 0.5, "rank": 4, "alpha": 16}
    state = run_sequence(tiny, params, toy_tasks[:1], epochs=4)[0].state
    cuts = [{"micro_batch_size": size} for size in (8, 4, 2)] + [{"micro_batch_size": 4, "zero_stage": 2}]
    branches = [run_stage(tiny, params, toy_tasks, state, lr=1e-3, epochs=4, **cut).part.branch for cut in cuts]
    for other in branches[1:]:
        for path, b in branches[0].b.items():
            assert torch.allclose(other.b[path], b, atol=1e-6) and torch.allclose(
                other.a[path], branches[0].a[path], atol=1e-6
            )


@pytest.mark.parametrize("over", ["seq_ft", "inc_lora"])
def test_masked_rows_stay_where_they_are_in_one_step(tiny, toy_tasks, run_stage, run_sequence, over):
    """One AdamW step without decay: half the rows of every masked weight keep their bits."""
    shape = {} if over == "seq_ft" else {"rank": 4, "alpha": 16}
    params = {"name": "migu", "over": over, "threshold": 0.5, **shape}
    state = run_sequence(tiny, params, toy_tasks[:1])[0].state
    result = run_stage(tiny, params, toy_tasks, state, epochs=1, batch_size=16, weight_decay=0.0)
    moved = {
        name: torch.ne(result.before[name], result.after[name]).any(dim=1).float().mean().item()
        for name in result.trainable
        if result.before[name].dim() == 2
    }
    if over == "inc_lora":
        # B = 0 at the start: the outputs of B tie at 0 and all rows may move, A has no gradient yet.
        assert all(share == (1.0 if ".lora_B." in name else 0.0) for name, share in moved.items())
        return
    embeddings = [name for name in moved if "embed" in name or "shared" in name or "relative" in name]
    inner = {name: share for name, share in moved.items() if name not in embeddings and "lm_head" not in name}
    assert inner and all(share <= 0.5 for share in inner.values())
    # Units behind a ReLU may have no gradient at all; those of the attention always have one.
    assert all(share == 0.5 for name, share in inner.items() if name.endswith(("v.weight", "v_proj.weight")))


def test_every_linear_module_counts_its_own_tokens(tiny, toy_tasks):
    """Encoder-side modules read the prompt, decoder-side ones the answer; a tied embedding is left out."""
    method = make_method({"name": "migu", "over": "seq_ft"}, 2)
    state_before, hooks = dict(tiny.backbone.model.state_dict()), []
    method.install(tiny.backbone, StageState())
    try:
        seen = {}
        for path, module in method.magnitudes.modules.items():
            look = lambda m, a, out, path=path: seen.update({path: out.detach().abs()})  # noqa: E731
            hooks.append(module.register_forward_hook(look))
        inputs = batch_of(tiny, toy_tasks[0].train[:3])
        method.condition(replace(inputs))
        model = tiny.backbone.model.train()
        model(input_ids=inputs.ids, attention_mask=inputs.mask, labels=inputs.labels)
        sums = method.magnitudes.take()
        assert sums.keys() == seen.keys() and len(sums) >= 14
        for path, sizes in seen.items():
            answer = tiny.backbone.encoder_decoder and (
                path == "lm_head"
                or ("decoder" in path and not path.endswith(("EncDecAttention.k", "EncDecAttention.v")))
            )
            mask = (inputs.labels != -100) if answer else inputs.mask.bool()
            assert torch.allclose(sums[path], sizes[mask].sum(dim=0), rtol=1e-5), path
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied != ("lm_head" in sums)
    finally:
        for hook in hooks:
            hook.remove()
        method.remove()
        tiny.backbone.model.eval()
    assert all(torch.equal(value, state_before[name]) for name, value in tiny.backbone.model.state_dict().items())
