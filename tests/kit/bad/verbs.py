"""Bad arguments of the other verbs."""

from __future__ import annotations

import json

from tests.kit.bad.form import Bad

STAY = ("--data", "{data}", "--model", "{model}", "--store", "{store}", "--workers", "0", "--preset", "laptop")

ON_PAPER = ("--order", "sst2", *STAY[:6], "--preset", "laptop")


def compare(*arguments: str, words: tuple[str, ...]) -> Bad:
    """`raycl compare` on sst2."""
    return Bad("compare", ["--order", "sst2", *STAY, "--tracking", "off", "--output", "{tmp}/c", *arguments], words)


COMPARE = [
    compare(words=("--method", "at least one method")),
    compare("--method", "", words=("--method ''", "expected NAME")),
    compare("--method", ":", words=("--method ':'", "expected NAME")),
    compare("--method", "o_lora:", words=("--method 'o_lora:'", "expected NAME")),
    compare("--method", "o_lora:rank", words=("'rank' is not FIELD=VALUE",)),
    compare("--method", "o_lora:=8", words=("'=8' is not FIELD=VALUE",)),
    compare("--method", "olora", words=("unknown method (did you mean 'o_lora'?)",)),
    compare("--method", "o_lora", "--method", "o_lora", words=("o_lora stands twice", "LABEL=")),
    compare("--method", "=o_lora", words=("the label ''", "1 to 60 plain printable")),
    compare("--method", "a\nb=o_lora", words=("the label 'a\\nb'", "plain printable")),
    compare("--method", "a/b=o_lora", words=("the label 'a/b'", "without slashes")),
    compare("--method", "\u202eab=o_lora", words=("\\u202e", "plain printable")),
    compare("--method", f"{'x' * 300}=o_lora", words=("the label", "1 to 60")),
    compare("--method", f"o_lora:rank=[{'8,' * 200}8]", words=("give it a label",)),
    compare("--method", "o_lora", "--set", "method=5", words=("method: 5 is no mapping", "--method NAME")),
    compare("--method", "o_lora", "--set", "method.nosuch=5", words=("method.nosuch", "no method of the comparison")),
    compare("--method", "o_lora", "--set", "preset=paper", words=("--preset NAME",)),
    compare("--method", "o_lora", "--seed", "1", "--seed", "1", words=("--seed: 1 stands twice",)),
    compare("--method", "o_lora", "--seed", "-1", words=("seeds", "-1")),
    compare("--method", "o_lora", "--order", "sst2", words=("stands twice",)),
    compare("--method", "o_lora", "--order", "std-9", words=("'std-9'",)),
    compare("--method", "o_lora:rank=0", words=("method.rank",)),
    compare("--method", "o_lora", "--max-concurrent", "0", words=("--max-concurrent",)),
    compare("--method", "o_lora", "--preset", "fast", words=("--preset 'fast'",)),
]
NOTE = {"spec": {}, "stage_keys": ["x"]}
USE = [
    Bad("generate", ["nosuch", "text"], ["'nosuch'", "no run and no stage"]),
    Bad("generate", ["{tmp}", "text"], ["no run and no stage"]),
    Bad("generate", ["nosuch", "--file", "/no/file"], ["--file /no/file", "No such file"]),
    Bad("generate", ["nosuch", "a", "--file", "b"], ["give one of them"]),
    Bad("generate", ["nosuch", "--file", "{tmp}/t.txt"], ["--file", "UTF-8"], {"t.txt": b"\xff\xfe\x00"}),
    Bad("generate", ["nosuch", "--file", "{tmp}/t.txt"], ["there is no text"], {"t.txt": "\n"}),
    Bad("probe", ["nosuch", "--file", "{tmp}/t.txt"], ["there is no text"], {"t.txt": "\n"}),
    Bad("probe", ["nosuch"], ["nosuch"]),
    Bad("generate", ["{tmp}/r", "a"], ["spec.json", "cannot be read"], {"r/spec.json": "{"}),
    Bad("generate", ["{tmp}/r", "a"], ["spec.json", "it holds a list"], {"r/spec.json": "[]"}),
    Bad("generate", ["{tmp}/r", "a"], ["summary.json", "cannot be read"], {"r/spec.json": "{}"}),
    Bad("generate", ["{tmp}/r", "a"], ["order"], {"r/spec.json": "{}", "r/summary.json": "{}"}),
    Bad(
        "generate", ["{tmp}/r", "a"], ["spec.json", "recursion"], {"r/spec.json": "[" * 100_000, "r/summary.json": "{}"}
    ),
    Bad("generate", ["x" * 5000, "a"], ["..."]),
    Bad("log", ["../home/heads/x"], ["no run and no stage"]),
    Bad("log", ["{tmp}/r@9"], ["order"], {"r/spec.json": json.dumps(NOTE), "r/summary.json": json.dumps(NOTE)}),
    Bad("tag", ["nosuch", "name"], ["no run and no stage"]),
    Bad("tag", ["nosuch"], ["name"]),
    Bad("show", ["nosuch"], ["no run and no stage"]),
    Bad("diff", ["nosuch", "other"], ["no run and no stage"]),
    Bad("append", ["nosuch", "--task", "sst2"], ["no run and no stage"]),
    Bad("append", ["nosuch"], ["--task"]),
    Bad("forget", ["nosuch", "--task", "sst2", "--tag", "x"], ["no run and no stage"]),
    Bad("evaluate", ["nosuch"], ["no run and no stage"]),
    Bad("predictions", ["nosuch"], ["no run and no stage"]),
    Bad("predictions", ["nosuch", "--stage", "-1"], ["--stage"]),
    Bad("export", ["nosuch", "--to", "{tmp}/x"], ["no run and no stage"]),
    Bad("export", ["nosuch", "--to", "{tmp}/x", "--form", "zip"], ["--form", "'zip'"]),
    Bad("push", ["/no/folder", "org/name"], ["/no/folder"]),
    Bad("import-adapter", ["/no/adapter", "--task", "sst2", *STAY[:6], "--preset", "laptop"], ["/no/adapter"]),
    Bad("import-adapter", ["{tmp}", "--task", "x\u202ey", *STAY[:6], "--preset", "laptop"], ["\\u202e"]),
    Bad("serve", ["nosuch"], ["no run and no stage"]),
    Bad("serve", ["nosuch", "--port", "70000"], ["--port"]),
    Bad("sweep", [], ["--space"]),
    Bad("sweep", ["--space", "/no/space.py"], ["/no/space.py"]),
    Bad("reproduce", ["nosuch"], ["reproduction 'nosuch': unknown"]),
    Bad("fields", ["olora"], ["did you mean 'o_lora'"]),
    Bad("fields", ["o_lora", "--preset", "fast"], ["--preset 'fast'"]),
    Bad("methods", ["new", "Bad Name"], ["NAME 'Bad Name'", "lower-case"]),
    Bad("methods", ["new", "json"], ["'json'", "Python has a module"]),
    Bad("plan", ["--order", "std-9"], ["'std-9'"]),
    Bad("estimate", ["--order", "std-9"], ["'std-9'"]),
    Bad("estimate", ["--gpus", "0", *STAY[:6]], ["--gpus 0", "1 or more"]),
    Bad("estimate", ["--gpus", "eight", *STAY[:6]], ["--gpus", "integer"]),
    Bad("estimate", ["--gpus", "8", "--gpu", "h1000", *ON_PAPER], ["--gpu 'h1000'", "h100, a100"]),
    Bad("estimate", ["--gpu", "h100", *ON_PAPER], ["--gpu h100", "--gpus N"]),
    Bad("estimate", ["--gpus", "8", *ON_PAPER, "--model", "org/nosuch"], ["'org/nosuch'", "google-t5/t5-large"]),
    Bad("estimate", ["--gpus", "8", *ON_PAPER, "--model", "/no/model"], ["'/no/model'", "neither an existing folder"]),
    Bad("estimate", ["--gpus", "8", *ON_PAPER, "--space", "/no/space.py"], ["/no/space.py"]),
]
ROWS = [*COMPARE, *USE]
