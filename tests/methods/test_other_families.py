"""Model families beside Llama and T5 need no code of their own: modules are found by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from raycl.methods.registry import build
from raycl.models.load import load_model
from raycl.sections import ModelSpec
from raycl.tasks.task import Task
from raycl.train.batches import Encoder
from raycl.train.generation import Decoder
from raycl.train.workers import Workers

SHAPE = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {"num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}
FAMILIES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_qwen_model_learns_and_is_served(
    name: str,
    tmp_path: Path,
    tiny_folders: dict[str, Path],
    toy_task: Callable[..., Task],
    run_sequence: Callable[..., list],
) -> None:
    """Two stages of GainLoRA over InfLoRA train on q and v of every layer, and the state answers the first task."""
    config, kind = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["llama"])
    torch.manual_seed(3)
    kind(config(vocab_size=len(tokenizer), initializer_range=0.3, **SHAPE, **SIZES)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # transformers reads any tokenizer beside a Qwen model as a byte-level one, which knows no word of the toy tasks.
    model = replace(load_model(ModelSpec(name=str(tmp_path), precision="fp32"), "cpu"), tokenizer=tokenizer)
    tasks = [toy_task(1), toy_task(2)]
    params = {"name": "gain_lora", "over": "inf_lora", "rank": 4, "gate_hidden": [16]}
    results = run_sequence(model, params, tasks, epochs=30)
    branch = results[-1].part.branch
    assert {path.rsplit(".", 1)[-1] for path in branch.b} == {"q_proj", "v_proj"}
    assert len(branch.b) == 2 * SHAPE["num_hidden_layers"]
    method = build(results[-1].method.params, results[-1].method.info)
    method.serve(model.backbone, results[-1].state)
    scored = Decoder(model, method, Encoder(model.tokenizer, False, 64, 8), 4, Workers()).score(tasks[0])
    method.remove()
    assert scored.score == 100.0


def test_the_base_models_own_dropout_is_a_setting(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    """Off unless asked for, whatever the model's configuration says; on, it acts only while training."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["t5"])
    config = T5Config(
        vocab_size=len(tokenizer), d_model=48, d_kv=6, num_heads=4, d_ff=64, num_layers=1, dropout_rate=0.3
    )
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def differs(dropout: float, train: bool) -> bool:
        spec = ModelSpec(name=str(tmp_path), precision="fp32", dropout=dropout)
        model = load_model(spec, "cpu").backbone.model.train(train)
        ids = torch.tensor([[4, 5, 6, 7]])
        with torch.no_grad():
            first, second = (model(input_ids=ids, labels=ids).logits for _ in range(2))
        return not torch.equal(first, second)

    assert not differs(0.0, train=True)
    assert not differs(0.3, train=False)
    assert differs(0.3, train=True)
