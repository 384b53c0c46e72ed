"""One stage as the papers' scripts run it, in a process of its own, with transformers' Trainer and PEFT alone:

    python benchmarks/papers_stage.py --model FOLDER --train FILE --tests FILE [FILE ...] --precision fp32 --out FOLDER
        [--before FOLDER ...]

Load the base model, put on it the adapters of the stages before, frozen, and a new one; train that; write it; generate
answers to the test prompts of all tasks so far, 50 tokens in the data's order. Files hold lines of JSON: prompt, answer.
Prints the share of right answers of each test file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

IGNORE = -100


def main() -> None:
    """Train and answer."""
    given = arguments()
    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    model = with_adapters(AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype), given.before)
    rows = [encoded(tokenizer, row, given.longest) for row in read(given.train)]
    settings = TrainingArguments(
        output_dir=str(given.out),
        per_device_train_batch_size=given.batch,
        num_train_epochs=1,
        learning_rate=given.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        logging_steps=4,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        bf16=given.precision == "bf16",
        disable_tqdm=True,
    )
    pad = tokenizer.pad_token_id
    Trainer(
        model, settings, train_dataset=Dataset.from_list(rows), data_collator=lambda batch: collated(batch, pad)
    ).train()
    model.save_pretrained(str(given.out), selected_adapters=["new"])
    model.eval()
    for path in given.tests:
        tests = read(path)
        answers = written(model, tokenizer, [row["prompt"] for row in tests], given)
        right = sum(answer == row["answer"] for answer, row in zip(answers, tests, strict=True))
        print(f"{path.stem}: {100 * right / len(tests):.1f}", flush=True)


def with_adapters(base: Any, before: list[Path]) -> Any:
    """The adapters of earlier stages, frozen, and a new one that trains; all of them add up."""
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model: Any = PeftModel(base, config, adapter_name="new")
    names = [f"stage{index}" for index in range(len(before))]
    for name, folder in zip(names, before, strict=True):
        model.load_adapter(str(folder / "new"), adapter_name=name)
    model.base_model.set_adapter([*names, "new"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and ".new." in name)
    return model


def encoded(tokenizer: Any, row: dict[str, str], longest: int) -> dict[str, list[int]]:
    """Prompt and answer as token ids, the loss on the answer alone."""
    prompt = tokenizer(row["prompt"], truncation=True, max_length=longest).input_ids
    answer = [*tokenizer(row["answer"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}


def collated(batch: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """A batch padded on the left to its longest row."""
    width = max(len(row["input_ids"]) for row in batch)
    fill = {"input_ids": pad, "labels": IGNORE}
    found = {
        name: torch.tensor([[value] * (width - len(row[name])) + row[name] for row in batch])
        for name, value in fill.items()
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    found["attention_mask"] = (torch.arange(width)[None] >= width - lengths[:, None]).long()
    return found


@torch.no_grad()
def written(model: Any, tokenizer: Any, prompts: list[str], given: argparse.Namespace) -> list[str]:
    """Greedy answers, batch by batch in the data's order."""
    texts = []
    for first in range(0, len(prompts), given.eval_batch):
        part = prompts[first : first + given.eval_batch]
        fed = tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=given.longest)
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
            out = model.generate(**fed, max_new_tokens=50, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        new = out[:, fed["input_ids"].shape[1] :]
        texts += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return texts


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--tests", type=Path, nargs="+", required=True)
    parser.add_argument("--before", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--eval-batch", type=int, default=24)
    parser.add_argument("--longest", type=int, default=64, help="tokens of a prompt, at most")
    return parser.parse_args()


if __name__ == "__main__":
    main()
