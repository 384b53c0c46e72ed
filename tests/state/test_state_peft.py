"""What the store writes is what PEFT reads: a branch serves with no raycl installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raycl.state.store import Store
from tests.kit.state_samples import MODULES, make_part, make_provenance


def tiny_llama() -> LlamaForCausalLM:
    """A random two-layer Llama, 16 wide; the same one at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("from_peft", [False, True])
def test_peft_loads_a_branch_exactly(tmp_path: Path, from_peft: bool) -> None:
    from peft import LoraConfig, PeftModel, TaskType

    part = make_part(d_in=16, d_out=16)
    extra = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"]).to_dict()
    store = Store(str(tmp_path))
    key = store.publish(part, make_provenance(adapter_config=extra if from_peft else None)).key

    base = tiny_llama()
    updated = {
        path: base.get_submodule(path).weight + 3 / 2 * (part.branch.b[path] @ part.branch.a[path])
        for path in part.branch.a
    }
    loaded = PeftModel.from_pretrained(tiny_llama(), f"{store.folder(key)}/adapter")
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        served = loaded(tokens).logits
        merged = loaded.merge_and_unload()
        for path, weight in updated.items():
            assert torch.equal(merged.get_submodule(path).weight, weight)
            base.get_submodule(path).weight.copy_(weight)
        assert torch.allclose(served, base(tokens).logits, atol=1e-6)
        assert not torch.allclose(served, tiny_llama()(tokens).logits, atol=1e-3)


def test_the_config_that_peft_reads(tmp_path: Path) -> None:
    """In full, by hand; what another initialisation would do to the base weights is not asked for."""
    store = Store(str(tmp_path))
    extra = {"task_type": "CAUSAL_LM", "init_lora_weights": "pissa", "inference_mode": False, "bias": "none"}
    for given in (None, extra):
        key = store.publish(
            make_part(len(given or "")), make_provenance(len(given or "") + 1, adapter_config=given)
        ).key
        config = json.loads((Path(store.folder(key)) / "adapter" / "adapter_config.json").read_text())
        own = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none"}
        fixed = {"target_modules": sorted(MODULES), "init_lora_weights": True, "inference_mode": True}
        assert config == own | fixed | ({"task_type": "CAUSAL_LM"} if given else {})


def test_what_peft_saves_has_the_same_names(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open

    part = make_part(d_in=16, d_out=16)
    store = Store(str(tmp_path / "store"))
    key = store.publish(part, make_provenance()).key
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "peft")
    names = []
    for folder in (tmp_path / "peft", Path(store.folder(key)) / "adapter"):
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            names.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    assert names[0] == names[1]
