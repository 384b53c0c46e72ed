"""Bad task streams and bad rows of one's own."""

from __future__ import annotations

import gzip

from tests.kit.bad.form import HERE, Bad

TASK = "{name: mine, data: {train: rows.csv, test: rows.csv}, input: text, answer: label, labels: [fine, poor]}"
ROWS_CSV = "text,label\ngood,fine\nbad,poor\n"
RUN = ("--model", "{model}", "--store", "{store}", *HERE, "--stream", "{tmp}/s.yaml")


def stream(text: str, *words: str, **files: str | bytes) -> Bad:
    """`raycl run --stream` with this file."""
    return Bad("run", RUN, words, {"s.yaml": text, "rows.csv": ROWS_CSV, **files})


def task(text: str, *words: str) -> Bad:
    """A stream of one task."""
    return stream(f"stream: own\ntasks:\n- {text}\n", *words)


def with_field(text: str, *words: str) -> Bad:
    """The sound task with one field more, or another one."""
    return task(TASK[:-1] + f", {text}" + "}", *words)


def rows(data: str | bytes, *words: str, name: str = "rows.csv", labels: str = "[fine, poor]") -> Bad:
    """The sound task over other rows."""
    said = TASK.replace("rows.csv", name).replace("[fine, poor]", labels)
    return Bad("run", RUN, words, {"s.yaml": f"stream: own\ntasks:\n- {said}\n", name: data})


FORM = [
    stream("", "s.yaml", "expected a mapping with `stream` and `tasks`"),
    stream("[]", "s.yaml", "expected a mapping"),
    stream("stream: own", "tasks", "required"),
    stream("stream: own\ntasks: []", "tasks", "at least 1"),
    stream("stream: own\ntasks: {a: 1}", "tasks", "list"),
    stream("stream: own\ntasks: [1]", "tasks.0"),
    stream(f"stream: long\ntasks: [{TASK}]", "'long'", "built-in"),
    stream(f"stream: a b\ntasks: [{TASK}]", "stream", "pattern"),
    stream(f"stream: own\ntasks: [{TASK}, {TASK}]", "'mine' stands twice"),
    stream(f"stream: own\ntask: [{TASK}]", "task: unknown field (did you mean 'tasks'?)", "tasks"),
    stream(f"stream: own\ntasks: [{TASK}]\norders: {{a: [other]}}", "orders.a", "'other'"),
    stream(f"stream: own\ntasks: [{TASK}]\norders: {{a: []}}", "orders.a", "at least one"),
    stream(f'stream: own\ntasks: [{TASK}]\norders: {{"a\\u202eb": [mine]}}', "orders", "plain printable"),
    stream(f"stream: own\ntasks: [{TASK}]\ndefaults: 5", "defaults", "expected a mapping"),
    stream(f"stream: own\ntasks: [{TASK}]\ncategories: {{x: {{}}}}", "categories.x", "no task has this category"),
    stream("stream: own\ntasks: [{use: sst}]", "'sst' is no built-in task", "sst2"),
    stream("stream: own\ntasks: [{use: sst2, labels: [a, b]}]", "use: sst2", "'labels' cannot be set"),
    stream(f"stream: own\nstream: own\ntasks: [{TASK}]", "stands twice"),
    stream("stream: own\ntasks: &a [*a]", "holds itself"),
    with_field("name: 'a b'", "stands twice"),
    task(TASK.replace("mine", '"a\\u202eb"'), "name", "pattern"),
    task(TASK.replace("mine", "x" * 101), "name", "100"),
    task(TASK.replace("mine", "../x"), "name", "pattern"),
    task(TASK.replace("mine", "sst2"), "'sst2'", "built-in task"),
    with_field('category: "a\\u202eb"', "category", "plain printable"),
    with_field('other_names: ["a\\nb"]', "other_names", "plain printable"),
    with_field("labls: [a]", "labls: unknown field (did you mean 'labels'?)"),
    with_field("metric: nosuch", "metric", "nosuch"),
    with_field("metric: 'os:system'", "Python code", "--allow-code"),
    with_field("weight: -1", "weight", "0 or more"),
    with_field("weight: nosuch", "no column 'nosuch'"),
    with_field("split: {test: 1.5}", "split.test", "less than 1"),
    with_field("split: {test: 0.6, validation: 0.5}", "split", "below 1"),
    with_field("prompt: fancy", "prompt"),
    with_field("prompt: {head: '{{ x.__class__ }}'}", "prompt"),
    with_field("max_answer_tokens: 0", "max_answer_tokens", "greater than 0"),
    with_field("run: {seed: 1}", "run", "may not differ by stage"),
    with_field("aliases: {maybe: [perhaps]}", "'maybe'", "no label"),
    with_field("messages: chat", "messages"),
    task("{name: mine, data: rows.csv, input: text, answer: label}", "nothing to score on"),
    task("{name: mine, data: {train: rows.csv, test: rows.csv}, input: text}", "`answer`"),
    task("{name: mine, data: {}, input: text, answer: label}", "data", "expected a path"),
    task("{name: mine, data: 5, input: text, answer: label}", "data", "expected a path"),
    task(TASK.replace("[fine, poor]", "[yes, no]"), "quotes"),
    task(TASK.replace("[fine, poor]", "[one]"), "labels", "at least 2"),
    task(TASK.replace("[fine, poor]", "[one, one]"), "labels must be different"),
    task(TASK.replace("input: text", "input: '{{ text'"), "input", "not valid"),
    task(TASK.replace("input: text", "input: '{% for x in range(9) %}a{% endfor %}'"), "task 'mine': input", "range"),
    task(TASK.replace("input: text", "input: '{{ text.encode() }}'"), "encode()", "allowed"),
    task(TASK.replace("input: text", "input: words"), "no column 'words'", "text, label"),
    task(TASK.replace("rows.csv", "nosuch.csv"), "nosuch.csv", "there is no such file"),
    task(TASK.replace("rows.csv", "'*.tsv'"), "*.tsv", "there is no such file"),
    task(TASK.replace("rows.csv", "rows.xyz"), "rows.xyz"),
    task(TASK.replace("rows.csv", "s3://me:secret@host/rows.csv"), "data.train", "holds a password", "s3://***@host"),
    task(TASK.replace("rows.csv", "nosuch://x/rows.csv"), "nosuch://x/rows.csv", "Protocol not known"),
    Bad("run", [*RUN[:-1], "/no/such.yaml"], ["--stream", "/no/such.yaml", "cannot be read"]),
    Bad("run", [*RUN[:-1], "{tmp}"], ["--stream", "cannot be read"]),
    Bad("tasks", ["check", "/no/such.yaml"], ["/no/such.yaml", "cannot be read"]),
    Bad("tasks", ["show", "nosuch"], ["'nosuch'", "unknown", "raycl tasks list"]),
    Bad("data", ["fetch"], ["--stream"]),
    Bad("data", ["fetch", "nosuch"], ["'nosuch'"]),
]

CONTENT = [
    rows("", "rows.csv", "is empty"),
    rows("text,label\n", "no usable rows"),
    rows("text,text\na,b\n", "different names"),
    rows("text,label\na\n", "line 2", "1 fields", "2, as the header has"),
    rows('text,label\n"a,poor\n', "not CSV"),
    rows(b"text,label\n\xff\xfe,poor\n", "not UTF-8"),
    rows("text,label\n,poor\n", "line 2", "not empty"),
    rows("text,label\na,poorr\n", "'poorr'", "nearest: 'poor'"),
    rows("text,label\n" + "a,poorr\n" * 50, "more rows with problems"),
    rows("x" * 300, "no usable rows"),
    rows("{", "line 1", "not JSON", name="rows.jsonl"),
    rows("[1]", "a row is 1", name="rows.jsonl"),
    rows('{"text": "a"}', "no column 'label'", name="rows.jsonl"),
    rows('{"text": 5, "label": []}', "label", name="rows.jsonl"),
    rows("{}", "holds no list of rows", name="rows.json"),
    rows("[" * 50_000, "nested too deeply", name="rows.json"),
    rows("9" * 10_000, "rows.json", name="rows.json"),
    rows('{"text": "\\ud800", "label": "poor"}', "UTF-8", name="rows.jsonl"),
    rows(b"PAR1", "no Parquet file", name="rows.parquet"),
    rows(b"", "no Parquet file", name="rows.parquet"),
    rows(b"ARROW1\x00\x00junk", "no Arrow file", name="rows.arrow"),
    rows(b"junk", "no Arrow file", name="rows.arrow"),
    rows(b"\x1f\x8b\x08\x00", "is damaged", name="rows.csv.gz"),
    rows(b"no archive", "is damaged", name="rows.csv.gz"),
    rows(b"no archive", "is damaged", name="rows.csv.xz"),
    rows(b"no archive", "is damaged", name="rows.csv.bz2"),
    rows(gzip.compress(ROWS_CSV.encode())[:-9], "is damaged", name="rows.csv.gz"),
    rows("text,label\na,poor\n", "labels: from_data finds only", labels="from_data"),
]
BOMBS = [
    Bad(one.verb, one.arguments, one.words, one.files, {"RAYCL_READ_LIMIT": "1"})
    for one in (
        rows(
            gzip.compress(b"text,label\n" + bytes(5 << 20)), "larger than 1 MiB", "RAYCL_READ_LIMIT", name="rows.csv.gz"
        ),
        rows(gzip.compress(b"[" + b" " * (5 << 20)), "larger than 1 MiB", "RAYCL_READ_LIMIT", name="rows.json.gz"),
        rows(gzip.compress(b"\n" * (5 << 20)), "unpacks to more than 100 times", name="rows.jsonl.gz"),
        rows("text,label\n" + "x" * (2 << 20), "larger than 1 MiB", "line 2"),
        rows("[" + " " * (2 << 20) + "]", "larger than 1 MiB", name="rows.json"),
    )
]
ODD_LIMIT = Bad(
    "run", RUN, ["RAYCL_READ_LIMIT", "'many'", "MiB"],
    {"s.yaml": f"stream: own\ntasks:\n- {TASK}\n", "rows.csv": ROWS_CSV}, {"RAYCL_READ_LIMIT": "many"},
)  # fmt: skip
ROWS = [*FORM, *CONTENT, *BOMBS, ODD_LIMIT]
