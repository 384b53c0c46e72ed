"""Bad data folders and base models of `raycl run`."""

from __future__ import annotations

import gzip
import json

from tests.kit.bad.form import HERE, Bad, run

LABELS = '["Good", "Bad"]'
LINES = '{"label": "Good", "sentence": "Text: warm"}\n{"label": "Bad", "sentence": "Text: dull"}\n'


def files(*words: str, **changed: str | bytes | None) -> Bad:
    """sst2 in the benchmark layout with some of its files changed: train, test, labels."""
    whole = {"train": LINES, "test": LINES, "labels": LABELS} | changed
    endings = {"train": "jsonl", "test": "jsonl", "labels": "json", "packed": "jsonl.gz"}
    named = {f"d/sst2/{'train' if name == 'packed' else name}.{endings[name]}": part for name, part in whole.items()}
    return Bad(
        "run",
        ["--order", "sst2", "--data", "{tmp}/d", "--model", "{model}", "--store", "{store}", *HERE],
        words,
        {name: part for name, part in named.items() if part is not None},
    )


DATA = [
    files("train.jsonl", "no usable rows", train=""),
    files("train.jsonl, line 1", "not JSON", train="{"),
    files("line 1", "a row is 5", train="5\n"),
    files("field 'label' is missing", train='{"sentence": "Text: x"}\n'),
    files("field 'sentence'", "not empty", train='{"label": "Good", "sentence": " "}\n'),
    files("label 'Godo'", "nearest: 'Good'", "Good, Bad", train=LINES + '{"label": "Godo", "sentence": "Text: x"}\n'),
    files("test.jsonl", "cannot be read", test=None),
    files("test.jsonl", "not JSON", "train.jsonl", test="{", train="["),
    files("labels.json", "two or more labels", labels="[]"),
    files("labels.json", "two or more labels", labels="{}"),
    files("labels.json", "a label stands twice", labels='["a", "a"]'),
    files("labels.json", "got 5", labels="[5, 6]"),
    files("labels.json", "not JSON", labels="["),
    files("labels.json", "nested too deeply", labels="[" * 50_000),
    files("train.jsonl", "byte 0 is not UTF-8", train=b"\xff\xfe"),
    files("is damaged", train=None, packed=b"\x1f\x8b"),
    files("is damaged", train=None, packed=gzip.compress(LINES.encode())[:-4]),
    files("UTF-8 can hold", train='{"label": "Good", "sentence": "\\ud800"}\n'),
    run("--data", "/no/such/folder", words=["/no/such/folder", "is not a folder"]),
    run("--data", "{tmp}", words=["no training file"]),
    run("--data", "", words=["data.source"]),
    run("--data", "demo", words=["demo", "--data FOLDER"]),
    run("--data", "hub", words=["--order demo"]),
    run("--data", "x" * 5000, words=["..."]),
    run("--set", "data.test_split=validation", words=["data.test_split", "data.train_examples"]),
]
DATA.append(
    Bad("run", files(train=None, packed=gzip.compress(bytes(5 << 20))).arguments, ["larger than 1 MiB", "RAYCL_READ_LIMIT"],
        files(train=None, packed=gzip.compress(bytes(5 << 20))).files, {"RAYCL_READ_LIMIT": "1"})
)  # fmt: skip

CONFIG = json.dumps({"model_type": "llama", "hidden_size": 8})


def model(*words: str, **parts: str | bytes) -> Bad:
    """`raycl run --model` with a folder."""
    endings = {"config": "json", "model": "safetensors", "pytorch_model": "bin", "adapter_config": "json"}
    return Bad(
        run(words=[]).verb,
        [*run(words=[]).arguments, "--model", "{tmp}/m"],
        words,
        {f"m/{name}.{endings[name]}": part for name, part in parts.items()},
    )


MODELS = [
    run("--model", "/no/model", words=["model.name", "'/no/model'", "packaged"]),
    run("--model", "", words=["model.name", "''"]),
    run("--model", "a/b/c", words=["model.name", "'a/b/c'", "owner/name"]),
    run("--model", "owner/model", words=["model.name", "--model packaged"]),
    run("--model", "x" * 5000, words=["model.name", "..."]),
    run("--model", "{tmp}", words=["has no config.json", "save_pretrained"]),
    model("no weights in the safetensors format", "pickle", config=CONFIG),
    model("no weights in the safetensors format", "pickle", config=CONFIG, pytorch_model=b"\x80\x04."),
    model("holds an adapter", config=CONFIG, model=b"x", adapter_config="{}"),
]
ROWS = [*DATA, *MODELS]
