"""Tiny random models whose tokenizer reads the demo's texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = 500
"""Size of the vocabulary."""


def save_model(family: str, folder: Path) -> Path:
    """Write a model of a family (llama or t5) and its tokenizer; q and v are not square."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = text_tokenizer(family)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(11)
    if family == "llama":
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **shape, **heads, bos_token_id=1))
    else:
        shape = {"d_model": 32, "d_kv": 6, "num_heads": 4, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2}
        model = T5ForConditionalGeneration(T5Config(**sizes, **shape, dropout_rate=0.1, decoder_start_token_id=0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tasks(root: Path, names: Sequence[str], train: int = 12, test: int = 4) -> Path:
    """Task files in the benchmark layout: real film reviews under labels of each task, which mean nothing."""
    from raycl.sections import DataSpec
    from raycl.tasks.catalogue import open_catalogue
    from raycl.tasks.load import load_tasks

    (reviews,) = load_tasks(["snippets"], DataSpec(source="demo"))
    texts = [example.body for example in reviews.train]
    for place, name in enumerate(names):
        labels = open_catalogue().tasks[name].labels or ()
        folder = root / name
        folder.mkdir(parents=True)
        for split, first, count in (("train", 0, train), ("test", train, test)):
            rows = [
                {"sentence": texts[place * (train + test) + first + i], "label": labels[i % len(labels)]}
                for i in range(count)
            ]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def text_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from the demo's texts; Llama's starts with <s>, T5's ends with </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from raycl.sections import DataSpec
    from raycl.tasks.catalogue import open_catalogue
    from raycl.tasks.load import load_tasks

    tasks = load_tasks(open_catalogue().orders["demo"], DataSpec(source="demo", train_examples=64, test_examples=8))
    texts = [f"{example.prompt} {example.answers[0]}" for task in tasks for example in task.train]
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    template, mark = ("<s> $A", ("<s>", 1)) if family == "llama" else ("$A </s>", ("</s>", 2))
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[mark])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)
