"""The stacked LoRA layer against a loop over branches, written out."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from raycl.adapters.branches import Branches, LoraShape, adapter_config, kaiming, take_layer
from raycl.adapters.stacked_lora import CURRENT, StackedLora
from raycl.state.stage_state import Branch

SHAPE = LoraShape(rank=3, alpha=6.0)


def random_branch(layers, rank: int, alpha: float, seed: int) -> Branch:
    """A branch of any rank and alpha on the modules of `layers`, with a B that is not 0."""
    draw = torch.Generator().manual_seed(seed)
    a = {path: torch.randn(rank, m.in_features, generator=draw) for path, m in layers.items()}
    b = {path: torch.randn(m.out_features, rank, generator=draw) for path, m in layers.items()}
    return Branch(rank, alpha, a, b)


def targets_of(tiny) -> dict[str, nn.Linear]:
    """The modules that adapters go on, by path."""
    modules = tiny.backbone.model.named_modules()
    return {path: m for path, m in modules if path.rsplit(".", 1)[-1] in tiny.backbone.targets}


@pytest.fixture
def installed(tiny):
    """Two frozen branches of different rank and alpha, and a current one with B != 0."""
    linears = targets_of(tiny)
    frozen = [random_branch(linears, 2, 5.0, 1), random_branch(linears, 4, 3.0, 2)]
    current = random_branch(linears, SHAPE.rank, SHAPE.alpha, 3)
    branches = Branches(tiny.backbone, SHAPE, frozen)
    branches.start(current.a, current.b, torch.Generator())
    yield branches, [*frozen, current]
    branches.remove()


def looped(layer, path: str, branches: list[Branch], x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """W x + sum_i c_i (alpha_i / r_i) B_i A_i x, branch by branch; gates (batch, branches)."""
    y = layer.get_base_layer()(x)
    for index, branch in enumerate(branches):
        update = (x @ branch.a[path].T) @ branch.b[path].T * (branch.alpha / branch.rank)
        y = y + gates[:, index, None, None] * update
    return y


def test_tokens_may_lie_along_several_axes_but_not_without_their_examples(installed):
    """(B, 1, S, d), as DeepSeek's latents, is (B, S, d); gates cannot weigh (N, d), while a plain sum needs no examples."""
    branches, _ = installed
    gates = torch.rand(5, 3)
    branches.mix_by(lambda layer, old, new: gates[:, None])
    layer = next(iter(branches.layers.values()))
    x = torch.randn(5, 6, layer.in_features)
    assert torch.equal(layer(x[:, None]), layer(x)[:, None])
    assert torch.equal(layer(x.view(5, 2, 3, -1)), layer(x).view(5, 2, 3, -1))
    with pytest.raises(ValueError, match="weighed by example"):
        layer(x.flatten(0, 1))
    branches.mix_by(None)
    assert torch.allclose(layer(x.flatten(0, 1)), layer(x).flatten(0, 1), atol=1e-5)


class Eighths(nn.Linear):
    """A quantised linear module: its weight holds eighths as whole numbers."""

    def forward(self, input):
        return nn.functional.linear(input, self.weight.to(input.dtype) / 8)


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_branches_on_quantised_weights_are_computed_as_the_model_is(computed):
    """Frozen branches take no whole numbers from the weight beneath; the sum is that of the loop."""
    base = Eighths(6, 5)
    base.weight = nn.Parameter(torch.randint(-9, 9, (5, 6), dtype=torch.int8), requires_grad=False)
    layer = StackedLora(base, CURRENT, LoraConfig(r=2, lora_alpha=4), r=2, lora_alpha=4).to(computed)
    listed = [random_branch({"one": base}, 2, 4.0, seed) for seed in (1, 2)]
    layer.down.data, layer.up.data = (value["one"].to(computed) for value in (listed[1].a, listed[1].b))
    layer.stack("one", listed[:1], computed)
    assert layer.frozen_a.dtype == layer.frozen_b.dtype == computed
    x = torch.randn(3, 4, 6)
    expected = looped(layer, "one", listed, x, torch.ones(3, 2))
    wide = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[computed]
    assert (layer(x.to(computed)).float() - expected).abs().max() <= wide * expected.abs().max()


@pytest.mark.parametrize("gated", [False, True])
def test_stacked_layer_equals_a_loop_over_branches(installed, gated):
    """All branches in two products give what the sum over branches gives, relative 1e-6, with and without gates."""
    branches, listed = installed
    gates = torch.rand(5, 3) if gated else torch.ones(5, 3)
    branches.mix_by((lambda layer, old, new: gates[:, None]) if gated else None)
    for path, layer in branches.layers.items():
        assert layer.in_features != layer.out_features
        x = torch.randn(5, 7, layer.in_features)
        expected = looped(layer, path, listed, x, gates)
        assert (layer(x) - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_a_plain_sum_over_an_fp32_weight_is_folded_and_the_base_stays_as_it_was(installed):
    """Output and gradients are those of the loop, without a product for the frozen branches; the base weight keeps its bits,
    and alone it is what `off` leaves."""
    branches, listed = installed
    for path, layer in branches.layers.items():
        before = layer.get_base_layer().weight.clone()
        x = torch.randn(5, 7, layer.in_features, requires_grad=True)
        expected = looped(layer, path, listed, x, torch.ones(5, 3))
        with FlopCounterMode(display=False) as counted:
            found = layer(x)
        tokens, both = 5 * 7, layer.in_features + layer.out_features
        assert counted.get_total_flops() == 2 * tokens * (
            layer.in_features * layer.out_features + SHAPE.rank * both
        ) + (2 * sum(layer.frozen_ranks) * layer.in_features * layer.out_features), "the sum is made once"
        with FlopCounterMode(display=False) as counted:
            layer(x)
        assert counted.get_total_flops() == 2 * tokens * (layer.in_features * layer.out_features + SHAPE.rank * both)
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
        mine, theirs = (torch.autograd.grad(one.square().sum(), x)[0] for one in (found, expected))
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert torch.equal(layer.get_base_layer().weight, before)
        with branches.off():
            assert torch.equal(layer(x), layer.get_base_layer()(x))


@pytest.mark.parametrize("why", ["weighed", "dropped out", "parted", "half", "transposed", "training"])
def test_what_cannot_be_folded_is_stacked(why):
    """Gates, dropout, a weight that is not here whole, half precision, other ways to store a weight, and a weight that
    trains: the sum is the stack's, and no copy of the weight is made."""
    kind = Conv1D(5, 6) if why == "transposed" else nn.Linear(6, 5)
    kind.weight.requires_grad_(why == "training")
    dtype = torch.bfloat16 if why == "half" else torch.float32
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.5 if why == "dropped out" else 0.0)
    layer = StackedLora(kind, CURRENT, config, r=2, lora_alpha=4).to(dtype).train()
    whole = nn.Linear(6, 5)
    layer.stack("one", [random_branch({"one": whole}, 2, 4.0, seed) for seed in (1, 2)], dtype)
    if why == "weighed":
        layer.mixer = lambda layer, old, new: torch.ones(1, 1, 3)
    if why == "parted":
        forward = kind.forward
        weight = kind.weight.data
        kind.forward = lambda x: nn.functional.linear(x, weight, kind.bias) if not kind.weight.numel() else forward(x)
        kind.weight.data = torch.empty(0)
    layer(torch.randn(3, 4, 6, dtype=dtype))
    assert layer.folded is None
    if why == "dropped out":
        layer.eval()(torch.randn(3, 4, 6))
        assert layer.folded is not None


@pytest.mark.parametrize("ranks", [(3, 3), (2, 4), (1,)])
@pytest.mark.parametrize("rows", [(5, 7), (5, 1), (1, 1)])
def test_branches_are_weighed_and_summed_up_one_by_one(ranks, rows):
    """Of equal ranks or not, for every token or for all of them: what a loop over the branches gives."""
    base = nn.Linear(6, 5)
    layer = StackedLora(base, CURRENT, LoraConfig(r=2, lora_alpha=4), r=2, lora_alpha=4)
    layer.stack("one", [random_branch({"one": base}, rank, 4.0, seed) for seed, rank in enumerate(ranks)])
    features, weights = torch.randn(5, 7, sum(ranks)), torch.randn(*rows, len(ranks))
    parts = features.split(ranks, dim=-1)
    weighed = torch.cat([part * weights[..., index, None] for index, part in enumerate(parts)], dim=-1)
    assert torch.equal(layer.weighed(features, weights), weighed)
    summed = torch.stack([part.sum(dim=-1) for part in parts], dim=-1)
    assert torch.allclose(layer.per_branch(features), summed, atol=1e-6)


def test_a_weight_for_every_token_is_kept_once_a_branch():
    """Under softmax attention the backward pass keeps T - 1 weights of a token, and none of them r times over."""
    base = nn.Linear(6, 5)
    layer = StackedLora(base, CURRENT, LoraConfig(r=2, lora_alpha=4), r=2, lora_alpha=4)
    layer.stack("one", [random_branch({"one": base}, 4, 4.0, seed) for seed in range(3)])
    features, weights = torch.randn(5, 7, 12, requires_grad=True), torch.randn(5, 7, 3, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().size() // 4)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer.weighed(features, weights)
    assert sorted(kept) == [5 * 7 * 3, 5 * 7 * 12]


def test_another_stack_is_another_sum(installed):
    """Branches that are stacked later are what is folded then."""
    branches, listed = installed
    path, layer = next(iter(branches.layers.items()))
    x = torch.randn(5, 7, layer.in_features)
    layer(x)
    layer.stack(path, listed[:1])
    expected = looped(layer, path, [listed[0], listed[2]], x, torch.ones(5, 2))
    assert (layer(x) - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_gradients_equal_those_of_the_loop(installed):
    """x, the current A and B, and the gates get the gradients of the loop over branches."""
    branches, listed = installed
    path, layer = next(iter(branches.layers.items()))
    x, gates = torch.randn(2, 4, layer.in_features), torch.rand(2, 3)
    weigh = torch.randn(2, 4, layer.out_features)

    def gradients(run, factors):
        inputs = [x.clone().requires_grad_(), gates.clone().requires_grad_()]
        return torch.autograd.grad((run(*inputs) * weigh).sum(), [*inputs, *factors])

    def stacked(x, gates):
        branches.mix_by(lambda layer, old, new: gates[:, None])
        return layer(x)

    free = [listed[2].a[path].clone().requires_grad_(), listed[2].b[path].clone().requires_grad_()]
    naive = [*listed[:2], Branch(3, 6.0, {path: free[0]}, {path: free[1]})]
    ours = gradients(stacked, [layer.lora_A[CURRENT].weight, layer.lora_B[CURRENT].weight])
    theirs = gradients(lambda x, gates: looped(layer, path, naive, x, gates), free)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_detach_old_cuts_only_the_old_path(installed):
    """With detach_old the gradient into x is that of the base and the current branch; the output and the gates' gradient
    stay."""
    branches, listed = installed
    path, layer = next(iter(branches.layers.items()))
    gates = torch.rand(2, 3, requires_grad=True)
    branches.mix_by(lambda layer, old, new: gates[:, None])
    x = torch.randn(2, 4, layer.in_features, requires_grad=True)
    free = layer(x)
    full, full_gates = torch.autograd.grad(free.sum(), [x, gates])
    layer.detach_old = True
    cut = layer(x)
    short, short_gates = torch.autograd.grad(cut.sum(), [x, gates])
    kept = gates.detach() * torch.tensor([0.0, 0.0, 1.0])
    expected = torch.autograd.grad(looped(layer, path, listed, x, kept).sum(), x)[0]
    layer.detach_old = False
    assert torch.equal(free, cut) and torch.allclose(full_gates, short_gates, rtol=1e-5)
    assert torch.allclose(short, expected, rtol=1e-5, atol=1e-5)
    assert (full - short).abs().max() > 0.1


def test_all_branches_share_one_dropout_mask(tiny):
    """A feature dropped for the current branch is dropped for the old ones in the same pass."""
    linears = targets_of(tiny)
    branches = Branches(tiny.backbone, LoraShape(2, 2.0, dropout=0.5), [random_branch(linears, 2, 2.0, 1)])
    try:
        path, layer = next(iter(branches.layers.items()))
        old = random_branch(linears, 2, 2.0, 1)
        opposite = {name: -value for name, value in old.b.items()}
        branches.start(old.a, opposite, torch.Generator())
        layer.train()
        x = torch.randn(3, 5, layer.in_features)
        base = layer.get_base_layer()(x)
        # Equal branches of opposite sign cancel under one mask, and only under one.
        assert (layer(x) - base).abs().max() <= 1e-5
        branches.start(old.a, {name: torch.zeros_like(value) for name, value in old.b.items()}, torch.Generator())
        layer.train()
        assert (layer(x) - layer(x)).abs().max() > 0.1
        layer.eval()
        assert torch.equal(layer(x), layer(x))
        assert torch.allclose(layer(x), looped(layer, path, [old], x, torch.ones(3, 1)), atol=1e-4)
    finally:
        branches.remove()


def test_remove_restores_the_very_same_modules(tiny):
    """After remove, the backbone has its own module objects, names and bytes again, and no trace of PEFT."""
    model = tiny.backbone.model
    objects = dict(model.named_modules())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model))
    branches = Branches(tiny.backbone, SHAPE, [])
    branches.start(None, None, torch.Generator())
    assert set(dict(model.named_modules())) != set(objects)
    branches.remove()
    again = dict(model.named_modules())
    assert again.keys() == objects.keys() and all(again[name] is objects[name] for name in objects)
    assert list(again) == list(objects)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert set(vars(model)) == attributes and not hasattr(model, "peft_config")
    assert not any(p.requires_grad for p in model.parameters())


def test_new_branch_starts_kaiming_uniform_and_inert(tiny):
    """A is uniform within 1/sqrt(d_in) and B is 0, in fp32; the generator alone decides the draw."""
    branches = Branches(tiny.backbone, SHAPE, [])
    try:
        branches.start(None, None, torch.Generator().manual_seed(1))
        first, zeros = branches.current()
        branches.start(None, None, torch.Generator().manual_seed(1))
        again, _ = branches.current()
        branches.start(None, None, torch.Generator().manual_seed(2))
        other, _ = branches.current()
    finally:
        branches.remove()
    for path, a in first.items():
        assert a.dtype == torch.float32 and a.abs().max() <= 1 / a.shape[1] ** 0.5
        assert not zeros[path].any()
        assert torch.equal(a, again[path]) and not torch.equal(a, other[path])
    rows = kaiming((2000, 30), torch.Generator().manual_seed(0)).norm(dim=1)
    assert abs(rows.mean() - 3**-0.5) < 0.01


@pytest.mark.parametrize("train", ["AB", "B", ""])
def test_start_decides_which_factors_train(tiny, train):
    """Exactly the named factors require gradients; base weights never do."""
    branches = Branches(tiny.backbone, SHAPE, [])
    try:
        branches.start(None, None, torch.Generator(), train=train)
        names = {name for name, p in tiny.backbone.model.named_parameters() if p.requires_grad}
        assert names == {f"{path}.lora_{letter}.{CURRENT}.weight" for path in branches.layers for letter in train}
    finally:
        branches.remove()


def test_current_hands_out_copies(tiny):
    """Changing the layer later does not change what was read out."""
    branches = Branches(tiny.backbone, SHAPE, [])
    try:
        branches.start(None, None, torch.Generator())
        a, _ = branches.current()
        kept = {path: value.clone() for path, value in a.items()}
        branches.set_a({path: torch.zeros_like(value) for path, value in a.items()})
        assert all(torch.equal(a[path], kept[path]) for path in kept)
        assert not any(value.any() for value in branches.current()[0].values())
    finally:
        branches.remove()


def test_peft_alone_computes_the_same_branch(tiny, tmp_path):
    """The written PEFT config with a branch's matrices gives, in PEFT without raycl, the stacked layer's outputs."""
    linears = targets_of(tiny)
    branch = random_branch(linears, SHAPE.rank, SHAPE.alpha, 5)
    config = LoraConfig(**adapter_config(tiny.backbone, branch, tiny.name))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (3, 6.0, 0.0, "none")
    plain = get_peft_model(copy.deepcopy(tiny.backbone.model), config)
    state = {}
    for path in linears:
        state[f"base_model.model.{path}.lora_A.default.weight"] = branch.a[path]
        state[f"base_model.model.{path}.lora_B.default.weight"] = branch.b[path]
    assert plain.load_state_dict(state, strict=False).unexpected_keys == []
    assert isinstance(plain, PeftModel)
    ids = torch.randint(8, 40, (2, 6))
    extra = {"decoder_input_ids": ids[:, :3]} if tiny.backbone.encoder_decoder else {}
    branches = Branches(tiny.backbone, SHAPE, [])
    try:
        branches.start(branch.a, branch.b, torch.Generator())
        with torch.no_grad():
            ours = tiny.backbone.model(input_ids=ids, **extra).logits
            theirs = plain.eval()(input_ids=ids, **extra).logits
    finally:
        branches.remove()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * ours.abs().max().item())


def test_frozen_branches_take_the_base_dtype_and_current_stays_fp32(tiny_bf16):
    """With a bf16 base the stack is bf16, what trains is fp32, and the layer's output is bf16 under autocast."""
    linears = targets_of(tiny_bf16)
    branches = Branches(tiny_bf16.backbone, SHAPE, [random_branch(linears, 2, 5.0, 1)])
    try:
        branches.start(None, None, torch.Generator())
        for layer in branches.layers.values():
            assert layer.frozen_a.dtype == layer.frozen_b.dtype == torch.bfloat16
            assert layer.lora_A[CURRENT].weight.dtype == torch.float32
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(torch.randn(1, 2, layer.in_features).bfloat16()).dtype == torch.bfloat16
    finally:
        branches.remove()


def test_peft_still_takes_our_layer(tiny, monkeypatch):
    """raycl's layer reaches PEFT through one experimental method of its configuration: this fails when PEFT moves it."""
    assert hasattr(LoraConfig, "_register_custom_module"), f"peft {peft.__version__}: find a new way for `take_layer`"
    branches = Branches(tiny.backbone, SHAPE, [])
    try:
        assert branches.layers.keys() == targets_of(tiny).keys(), f"peft {peft.__version__} put its own layers in"
        assert all(layer.active_adapters == [CURRENT] for layer in branches.layers.values())
    finally:
        branches.remove()
    monkeypatch.delattr(LoraConfig, "_register_custom_module")
    with pytest.raises(RuntimeError, match=r"peft .* has no LoraConfig._register_custom_module"):
        take_layer(LoraConfig(), StackedLora)
