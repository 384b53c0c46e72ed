"""Replay of the model's own answers: which are kept, that they are the model's, and that later stages train on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raycl.methods.common.answers import Answered
from raycl.tasks.task import Example
from raycl.testing.probes import encoder_of, make_method, serving
from raycl.train.generation import Decoder
from raycl.train.workers import Workers
from tests.kit.cases import CASES

OWN = CASES["replay_own"].params
DATA = OWN | {"answers": "data"}


def asked(method: Any, own: list[Example], scores: list[float]) -> list[Example]:
    """The examples that a method asks the trained model for, which answers each with its place, and scores as given."""
    seen: list[Example] = []

    def ask(examples: Any) -> list[Answered]:
        seen.extend(examples)
        return [Answered(f"own {example.id}", scores[int(example.id)], True) for example in examples]

    method.memory, method.score = [], None
    method.examples(own, None)
    method.recite(ask)
    return seen


def rows(count: int) -> list[Example]:
    """Examples of two labels in turn."""
    return [Example(str(i), "head", f"body {i}", "tail", ("ab"[i % 2], "other"), tokens=9) for i in range(count)]


def test_the_best_of_the_candidates_are_kept_with_the_models_answers() -> None:
    """A quarter of 16 is a budget of 4, of two candidates each; prompts stay as they are, answers are the model's."""
    own = rows(16)
    method = make_method(OWN)
    seen = asked(method, own, [float(i) for i in range(16)])
    assert len(seen) == 8 and {example.answers[0] for example in seen} == {"a", "b"}
    best = sorted(seen, key=lambda example: -int(example.id))[:4]
    assert method.kept == [replace(example, answers=(f"own {example.id}",)) for example in best]
    mean = sum(int(example.id) for example in best) / 4
    assert method.measures() == {"memory_score": pytest.approx(mean)}
    assert method.facts()["memory"][0] == {
        "id": best[0].id,
        "head": "head",
        "body": best[0].body,
        "tail": "tail",
        "answers": [f"own {best[0].id}"],
        "tokens": 9,
    }


def test_the_budget_is_strict_where_there_are_few_candidates() -> None:
    """A task smaller than its candidates is asked whole, and no more is kept than the share says."""
    method = make_method(OWN | {"candidates": 100})
    assert len(asked(method, rows(6), [0.0] * 6)) == 6 and len(method.kept) == 2


def test_with_the_datas_answers_nobody_is_asked() -> None:
    """The memory is what it always was, whatever `candidates` says."""
    method, plain = make_method(DATA | {"candidates": 7}), make_method({"name": "replay", "share": 0.25})
    assert asked(method, rows(16), []) == [] and asked(plain, rows(16), []) == []
    assert method.kept == plain.kept and len(method.kept) == 4 and method.measures() == {}
    assert all(example in rows(16) for example in method.kept)


def test_what_is_kept_is_what_the_served_model_answers(
    tiny: Any, toy_tasks: Any, run_sequence: Any, run_stage: Any
) -> None:
    """Greedily, as it is scored; the next stage has those rows, with their answers and the weight of replayed rows."""
    result = run_sequence(tiny, OWN, toy_tasks[:1])[0]
    kept = result.part.facts["memory"]
    assert len(kept) == 4
    examples = [Example(one["id"], one["head"], one["body"], one["tail"], tuple(one["answers"])) for one in kept]
    with serving(tiny, OWN, result.state) as method:
        said = Decoder(tiny, method, encoder_of(tiny), 3, Workers()).ask(toy_tasks[0], examples)
    assert [one.text for one in said] == [example.answers[0] for example in examples]
    assert all(one.score == 100 for one in said), "each is scored against what it has said itself"
    prompts = {example.prompt: example.answers[0] for example in toy_tasks[0].train}
    right = [100.0 * (prompts[example.prompt] == example.answers[0]) for example in examples]
    assert result.method.measures()["memory_score"] == sum(right) / len(right)
    later = make_method(OWN | {"weight": 0.5}, 2)
    later.install(tiny.backbone, result.state)
    try:
        replayed = list(later.examples(toy_tasks[1].train, None))[len(toy_tasks[1].train) :]
    finally:
        later.remove()
    assert [(row.example, row.stage, row.weight) for row in replayed] == [(example, 1, 0.5) for example in examples]
