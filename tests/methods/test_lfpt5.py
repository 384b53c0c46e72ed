"""LFPT5: examples as text and back, the rows and their weights, and the distillation on pseudo-examples only."""

from __future__ import annotations

import math

import pytest
import torch

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import Step
from raycl.methods.common.pseudo_text import Layout, Pair, layout_of
from raycl.methods.common.teacher import divergence
from raycl.methods.lfpt5 import VALUE, Lfpt5, Lfpt5Params
from raycl.state.stage_state import StagePart, StageState
from raycl.tasks.task import Example
from raycl.testing.probes import batch_of, make_method, same_part
from raycl.train.module import StageModule
from tests.kit.cases import CASES

PARAMS = CASES["lfpt5"].params | {"marker": "=>"}
MARKER = "t5tail"
"""A word that the tiny tokenizers know and no toy task of a sequence uses."""
LAYOUT = Layout(1, "Write an example of task 1.", "t1head ", " t1tail", ["good", "very bad"])
WRITTEN = [
    "t1w0 t1w5 => good",
    "t1w1 => Very  bad",
    "t1w0 t1w5 => good",
    "t1w3 => fine",
    "t1w2",
    "=> good",
    "a => b => good",
]
"""Two usable texts, a duplicate, an unknown answer, and three malformed ones."""


def example(number: int, head: str, body: str, tail: str, answer: str) -> Example:
    """One example."""
    return Example(str(number), head, body, tail, (answer,))


def test_a_layout_keeps_what_all_examples_share():
    """Head and tail up to where they differ; answers are labels where each stands for two examples or more."""
    own = [
        example(0, "Is it?\n", "a passage", " Question: one?\nAnswer:", "yes"),
        example(1, "Is it?\n", "b passage", " Question: two?\nAnswer:", "no"),
    ]
    layout = layout_of(3, own * 2)
    assert (layout.head, layout.tail) == ("Is it?\n", "?\nAnswer:")
    assert layout.cue == "Write an example of task 3." and layout.labels == ["no", "yes"]
    assert layout_of(3, own).labels == []
    assert layout.written(own[1], "=>", 80) == "b passage Question: two => no"
    assert layout.written(own[1], "=>", 1) == "b Question: two => no"
    assert Layout(**layout.record()) == layout


def test_what_is_written_can_be_read_again():
    """Reading a written example gives its prompt and answer back."""
    own = [
        example(i, "Say: ", body, " Why?", answer) for i, (body, answer) in enumerate([("a b", "x"), ("c", "y")] * 2)
    ]
    layout = layout_of(1, own)
    for one in own:
        again = layout.example("new", layout.read(layout.written(one, "=>", 9), "=>"))
        assert (again.prompt, again.answers) == (one.prompt, one.answers)


def test_malformed_texts_are_dropped():
    """One marker, a text before it and a known answer behind it; free-text tasks take any answer."""
    assert [LAYOUT.read(text, "=>") for text in WRITTEN] == [
        Pair("t1w0 t1w5", "good"), Pair("t1w1", "very bad"), Pair("t1w0 t1w5", "good"), None, None, None, None,
    ]  # fmt: skip
    free = Layout(1, "cue", "", "", [])
    assert free.read("t => Any Thing ", "=>") == Pair("t", "Any Thing")
    assert free.read("t =>", "=>") is None


def second_stage(tiny, texts: list[str] = WRITTEN, **settings) -> tuple[Lfpt5, list]:
    """Stage 2 after a task of LAYOUT, its rows, and what it asked to be written."""
    method = make_method(PARAMS | {"lambda_kd": 0.2, "share": 0.5} | settings, 2)
    value = torch.randn(4, tiny.backbone.width)
    part = StagePart("toy1", tensors={VALUE: value}, facts={"layout": LAYOUT.record()})
    method.install(tiny.backbone, StageState((part,)))
    own = [example(i, "t2head ", f"t2w{i}", " t2tail", ("good", "very bad")[i % 2]) for i in range(4)]

    def write(prompts, how, generator):
        assert prompts == [LAYOUT.cue] * method.params.attempts
        assert (how.tokens, how.top_k, how.repetition_penalty) == (12, 64, 2.5)
        return texts

    return method, method.examples(own, write)


def test_rows_by_hand(tiny):
    """Four own and two pseudo-examples: (1 - .2) 2 for each to answer, .25 of that to write; only answers have a stage."""
    method, rows = second_stage(tiny)
    answers, written = rows[0::2], rows[1::2]
    assert [row.stage for row in answers] == [0, 0, 0, 0, 1, 1] and {row.stage for row in written} == {0}
    assert {row.weight for row in answers} == {1.6} and {row.weight for row in written} == {0.4}
    assert all(row.mean for row in rows) and {row.tokens for row in written} == {12}
    assert answers[4].example.prompt == "t1head t1w0 t1w5 t1tail" and answers[4].example.answers == ("good",)
    assert [row.example.prompt for row in written[3:5]] == ["Write an example of task 2.", LAYOUT.cue]
    assert written[5].example.answers == ("t1w1 => very bad",)
    assert method.facts()["pseudo_examples"] == [2] and method.facts()["layout"]["stage"] == 2


def test_pseudo_examples_are_limited_and_even(tiny):
    """`share` of the own examples at most, labels in turn; with share 0 nothing is asked for."""
    texts = [f"t1w{i} => good" for i in range(9)] + ["t1w9 => very bad"]
    method, _ = second_stage(tiny, texts)
    assert sorted(pair.answer for pair in method.kept[0]) == ["good", "very bad"]
    assert len(second_stage(tiny, None, share=0.0)[1]) == 8


def test_without_writing_there_are_only_answers(tiny):
    """lambda_lm = 0: one row per example, of weight 1 - lambda_kd."""
    _, rows = second_stage(tiny, lambda_lm=0.0)
    assert len(rows) == 6 and {row.weight for row in rows} == {0.8}


def test_the_first_stage_has_no_distillation(tiny):
    """Weight 2 and 2 lambda_lm per pair of rows, whatever lambda_kd is, and no penalty."""
    method = make_method(PARAMS | {"lambda_kd": 0.9})
    method.install(tiny.backbone, StageState())
    rows = method.examples([example(0, "h ", "b", " t", "good")], None)
    assert [row.weight for row in rows] == [2.0, 0.5]
    assert method.penalties(None) == {}


def test_divergence_by_hand():
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln 3 / 2; impossible tokens give a finite number."""
    before, after = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, math.log(3)]]])
    assert divergence(before, after).item() == pytest.approx(math.log(2) - math.log(3) / 2)
    assert divergence(after, after).item() == 0
    assert torch.isfinite(divergence(torch.tensor([[[0.0, -1e4]]]), torch.tensor([[[-1e4, 0.0]]]))).all()


def distilled(method: Lfpt5, stages: list[int] | None, labels: list[list[int]], rows: float) -> float:
    """The raw penalty where each answer token of a pseudo row has the divergence of the test above."""
    count, width = len(labels), len(labels[0])
    tokens = torch.zeros(count, width, dtype=torch.long)
    inputs = Inputs(tokens, tokens, tokens, torch.tensor(labels), None if stages is None else torch.tensor(stages))
    logits = torch.tensor([0.0, math.log(3)]).expand(count, width, 2)
    asked = []

    def run(some: Inputs) -> torch.Tensor:
        asked.append(len(some.ids))
        assert method.teaching and not torch.is_grad_enabled()
        return torch.zeros(len(some.ids), width, 2)

    nothing = torch.tensor(0.0)
    step = Step(inputs, logits, torch.tensor(labels), nothing, 0.0, run, list, rows=rows)
    term = method.penalties(step)["distillation"]
    assert term.weight == 0.2 and len(asked) == 1 and not method.teaching
    return term.raw.item()


def test_the_distillation_by_hand(tiny):
    """Three answer tokens of pseudo rows in a global batch of 3 rows, that is 1.5 examples: s = 2 rows' worth of
    3 KL / 1.5; own rows and padding count nothing, and a worker without pseudo rows asks its teacher all the same."""
    method, _ = second_stage(tiny)
    kl = math.log(2) - math.log(3) / 2
    labels = [[4, 5], [4, 5], [-100, 5]]
    assert distilled(method, [0, 1, 1], labels, 3.0) == pytest.approx(2 * 3 * kl / 1.5)
    apart = [distilled(method, [stage], [row], 1.0) for stage, row in zip([0, 1, 1], labels, strict=True)]
    assert sum(apart) / 3 == pytest.approx(2 * 3 * kl / 1.5) and apart[0] == 0
    assert distilled(method, None, labels, 3.0) == 0
    single, _ = second_stage(tiny, lambda_lm=0.0, kl_rows=1)
    assert distilled(single, [0, 1, 1], labels, 3.0) == pytest.approx(3 * kl / 3)


def test_the_teacher_is_the_previous_prompt(tiny, toy_tasks):
    """At the start the KL is 0; once the prompt has moved it is not, it reaches the prompt only, and only pseudo rows give
    it; the teacher leaves the model in training mode."""
    method, _ = second_stage(tiny)
    module = StageModule(tiny.backbone, method).train()
    inputs = batch_of(tiny, toy_tasks[0].test)

    def kl(stages: list[int]) -> torch.Tensor:
        marked = Inputs(**{**vars(inputs), "stages": torch.tensor(stages)})
        _, logits, labels = module(marked)
        step = Step(marked, logits, labels, logits.sum(), 0.0, lambda some: module.predict(some)[0], list, rows=4.0)
        return method.penalties(step)["distillation"].raw

    try:
        assert abs(kl([1, 0, 1, 0]).item()) < 1e-6
        with torch.no_grad():
            method.prompt.value.add_(torch.randn_like(method.prompt.value))
        assert kl([0, 0, 0, 0]).item() == 0
        ones = [kl([int(i == j) for j in range(4)]).item() for i in range(4)]
        both = kl([1, 0, 0, 1])
        assert min(ones) > 1e-5 and both.item() == pytest.approx(ones[0] + ones[3], rel=1e-4)
        both.backward()
        assert method.prompt.value.grad.any() and tiny.backbone.model.training
        assert all(p.grad is None for p in tiny.backbone.model.parameters())
    finally:
        tiny.backbone.model.eval()


def test_a_sequence_with_pseudo_examples(tiny, toy_tasks, run_sequence, run_stage, monkeypatch):
    """With texts that can be read, later stages distil: 0 at their first step and more later on; the part says how many
    examples were written, and another lambda_kd gives another prompt."""
    texts = [f"t1w{i} t1w{i + 1} {MARKER} {label}" for i, label in enumerate(["good", "very bad"] * 2)]
    monkeypatch.setattr("raycl.train.generation.Decoder.write", lambda *_: texts)
    params = PARAMS | {"marker": MARKER, "lambda_kd": 0.1, "share": 0.25}
    results = run_sequence(tiny, params, toy_tasks)
    assert [result.part.facts["pseudo_examples"] for result in results] == [[], [4], [4, 4]]
    for result in results[1:]:
        raw = [line["terms"]["distillation"]["raw"] for line in result.log]
        assert abs(raw[0]) < 1e-6 and max(raw) > 1e-3
    assert results[0].log[-1]["terms"] == {}
    other = run_stage(tiny, params | {"lambda_kd": 0.5}, toy_tasks, results[0].state).part
    assert not same_part(other, results[1].part)


def test_a_stage_goes_on_with_the_last_prompt(tiny, toy_tasks, run_sequence):
    """P_(t-1) is where stage t starts, and the only tensor that is handed on."""
    first, second = run_sequence(tiny, CASES["lfpt5"].params, toy_tasks[:2])
    assert torch.equal(second.before["extra.prompt.value"], first.part.tensors[VALUE])
    assert second.part.tensors.keys() == {VALUE} and Lfpt5.carries(Lfpt5Params()) == "last"
