"""Options of loading: quantised weights, the kind of attention, gradient checkpointing, checkpoints in several files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raycl.errors import SpecError
from raycl.models.load import LoadedModel, load_model
from raycl.models.options import loading_options, require_options
from raycl.models.probe import probe
from raycl.sections import ModelSpec
from tests.kit.odd_models import save_odd


def named(folder: Path | str = "packaged", **fields: Any) -> ModelSpec:
    """The spec of a model, in fp32 unless `fields` say otherwise."""
    return ModelSpec.model_validate({"name": str(folder), "precision": "fp32", **fields})


def refused(device: str, **fields: Any) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(SpecError) as caught:
        require_options(named(**fields), device)
    return [line.strip() for line in str(caught.value).splitlines() if "model." in line]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes bitsandbytes and flash-attn look installed, or not."""
    find = importlib.util.find_spec

    def pretend(there: bool) -> None:
        def found(name: str, package: str | None = None) -> Any:
            return (object() if there else None) if name in ("bitsandbytes", "flash_attn") else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", found)

    return pretend


# --- what the machine must have -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_weights_need_cuda_and_bitsandbytes(bits: str, packages: Callable[[bool], None]) -> None:
    """Each is named, with the way out; with both there is nothing to say."""
    packages(False)
    lines = refused("cpu", quantization=bits)
    assert len(lines) == 2
    assert f"model.quantization: {bits} works on CUDA only, and this runs on cpu" in lines[0]
    assert "pip install bitsandbytes" in lines[1]
    packages(True)
    assert len(refused("cpu", quantization=bits)) == 1
    require_options(named(quantization=bits), "cuda:0")


def test_flash_attention_needs_cuda_its_package_and_bf16(packages: Callable[[bool], None]) -> None:
    """All that is missing is named at once."""
    packages(False)
    lines = refused("cpu", attention="flash_attention_2")
    assert ["CUDA only" in lines[0], "precision is fp32" in lines[1], "flash-attn" in lines[2]] == [True] * 3
    packages(True)
    require_options(named(attention="flash_attention_2", precision="bf16"), "cuda:0")


@pytest.mark.parametrize(
    "fields", [{}, {"attention": "sdpa"}, {"attention": "eager"}, {"gradient_checkpointing": True}]
)
def test_other_options_need_nothing(fields: dict[str, Any]) -> None:
    """On any device."""
    for device in ("cpu", "cuda:0"):
        require_options(named(**fields), device)


def test_a_model_is_not_read_before_its_options_are_looked_at(tmp_path: Path) -> None:
    """The refusal comes first, even of a folder that holds nothing."""
    with pytest.raises(SpecError, match=r"model\.quantization"):
        load_model(named(tmp_path, quantization="4bit"), "cpu")


def test_quantised_weights_are_made_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLM.int8 for 8 bits; for 4 bits NF4, computed in the precision of the model. Other models get no such argument."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "bitsandbytes" else version(name))
    eight, four = (loading_options(named(quantization=bits), "cuda:1", torch.bfloat16) for bits in ("8bit", "4bit"))
    assert eight["device_map"] == four["device_map"] == {"": "cuda:1"}
    assert eight["quantization_config"].load_in_8bit and not eight["quantization_config"].load_in_4bit
    config = four["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert loading_options(named(), "cpu", torch.float32) == {}
    assert loading_options(named(attention="eager"), "cpu", torch.float32) == {"attn_implementation": "eager"}


# --- attention ------------------------------------------------------------------------------------------------------------


def logits(model: LoadedModel) -> torch.Tensor:
    """Of the probe."""
    net = model.backbone.model.eval()
    with torch.no_grad():
        return net(**probe(net), use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart", "qwen3"])
def test_the_kind_of_attention_is_a_setting(family: str, tmp_path: Path) -> None:
    """It computes the same; a stage's record says which it was."""
    folder = save_odd(family, tmp_path)
    models = {kind: load_model(named(folder, attention=kind), "cpu") for kind in ("auto", "sdpa", "eager")}
    assert [models[kind].record["attention"] for kind in ("sdpa", "eager")] == ["sdpa", "eager"]
    assert models["auto"].record["attention"] in ("sdpa", "eager")
    assert torch.allclose(logits(models["sdpa"]), logits(models["eager"]), atol=1e-5)


def test_a_kind_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    """With what to leave out."""
    with pytest.raises(
        SpecError, match=r"Gemma2ForCausalLM does not support .*leave model\.attention \(sdpa\) at auto"
    ):
        load_model(named(save_odd("gemma2", tmp_path), attention="sdpa"), "cpu")


# --- gradient checkpointing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradient_checkpointing_computes_layers_again_and_trains_the_same(
    family: str, dropout: float, tmp_path: Path, toy_task: Callable[..., Any], run_stage: Callable[..., Any]
) -> None:
    """To rounding; what is drawn for dropout is drawn again alike. In evaluation nothing is computed twice."""
    if family == "llama" and dropout:
        family = "gpt2"  # Llama has no dropout but in its attention's weights
    folder = save_odd(family, tmp_path)
    calls, parts = [], []
    for on in (False, True):
        model = load_model(named(folder, gradient_checkpointing=on, dropout=dropout), "cpu")
        assert not model.faults
        path = next(iter(model.backbone.regions))
        seen: list[bool] = []
        layer = model.backbone.model.get_submodule(path.rpartition(".")[0])
        layer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(module.training), with_kwargs=False)
        parts.append(run_stage(model, {"name": "inc_lora", "rank": 2}, [toy_task(1)], epochs=1).part)
        calls.append((seen.count(True), seen.count(False)))
    assert calls[1][0] == 2 * calls[0][0] > 0
    assert calls[1][1] == calls[0][1]
    for one, two in zip(*(tuple(part.branch.b.values()) for part in parts), strict=True):
        assert one.abs().max() > 0 and torch.allclose(one, two, atol=1e-5)


def test_a_type_without_gradient_checkpointing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way out."""
    from transformers import GPT2LMHeadModel

    monkeypatch.setattr(GPT2LMHeadModel, "supports_gradient_checkpointing", False)
    folder = save_odd("gpt2", tmp_path)
    (found,) = load_model(named(folder, gradient_checkpointing=True), "cpu").faults
    assert "model.gradient_checkpointing" in found and "type gpt2" in found and "false" in found
    assert not load_model(named(folder), "cpu").faults


# --- files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_checkpoint_in_several_files_is_the_same_model(family: str, tmp_path: Path) -> None:
    """Loaded whole, without a device map."""
    whole = load_model(named(save_odd(family, tmp_path / "whole")), "cpu")
    cut = tmp_path / "cut"
    whole.backbone.model.save_pretrained(cut, max_shard_size="20KB")
    whole.tokenizer.save_pretrained(cut)
    assert len(list(cut.glob("*.safetensors"))) > 2
    again = load_model(named(cut), "cpu")
    assert not again.faults
    before, after = whole.backbone.model.state_dict(), again.backbone.model.state_dict()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)


def test_no_model_runs_with_attention_whose_gradients_are_nan(tmp_path: Path) -> None:
    """Loading keeps the process from cuDNN's attention (pytorch/pytorch#196678)."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_model(named(save_odd("llama", tmp_path)), "cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_bf16_attention_on_a_cpu_computes_in_fp32_where_it_trains_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel that is slow on the way back is not met, whether the mask holds truth values or numbers; of two models
    loaded one after the other, the second does not wrap it again."""
    for _ in range(2):
        load_model(named(save_odd("llama", tmp_path)), "cpu")
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    seen: list[torch.dtype] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noting(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(query.dtype)
        return kernel(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    draw = torch.Generator().manual_seed(0)
    wide = [torch.randn(2, 3, 5, 4, generator=draw) for _ in range(3)]
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    hidden = torch.zeros(2, 1, 5, 5).masked_fill(~visible, -1e9)
    half = [one.bfloat16() for one in wide]
    expected = kernel(*(one.float() for one in half), attn_mask=visible).transpose(1, 2)
    for mask in (visible, hidden.bfloat16()):
        trained = [one.clone().requires_grad_() for one in half]
        with torch.autocast("cpu", torch.bfloat16):
            out, weights = attend(nn.Identity(), *trained, mask)
        assert (out.dtype, weights) == (torch.bfloat16, None)
        assert torch.equal(out, expected.bfloat16())
        out.sum().backward()
        assert all(one.grad is not None and one.grad.dtype == torch.bfloat16 for one in trained)
    with torch.no_grad():
        assert attend(nn.Identity(), *half, visible)[0].dtype == torch.bfloat16
    attend(nn.Identity(), *(one.clone().requires_grad_() for one in wide), visible)
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
