"""The base model and the state that is on it: what the thread of `raycl.use.serving.batching` works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raycl.errors import SpecError
from raycl.files import Json
from raycl.models.load import LoadedModel
from raycl.use.heads import Head, find_head
from raycl.use.served import Answer, Served, load_base
from raycl.use.serving.desk import Desk, Key, Question


def heads_of(runs: Sequence[str], store: str | None = None) -> dict[str, Head]:
    """The states that `runs` name (as in `find_head`), by the names that they are served under: of a folder its last part.

    Raises UserError for a state that cannot be had, two of one name, and two that take different base models.
    """
    heads: dict[str, Head] = {}
    for run in runs:
        name = Path(run).expanduser().resolve().name if "/" in run or run in (".", "..") else run
        if name in heads:
            raise SpecError(
                f"{run}: is the second one of the name {name}; next step: give one of them a tag (`raycl tag`)"
            )
        heads[name] = find_head(run, store)
    first, *others = heads.items()
    for name, head in others:
        if _base_of(head) != _base_of(first[1]):
            raise SpecError(
                f"{name} and {first[0]} are on different base models, or load it differently; next step: serve each by "
                "itself"
            )
    return heads


def _base_of(head: Head) -> tuple[str, str]:
    """What decides the base model in memory, but for where its files lie."""
    return head.model_fingerprint, head.spec.model.model_copy(update={"name": ""}).model_dump_json()


@dataclass(frozen=True)
class Outcome:
    """What the model's thread finds out about one question."""

    answer: Answer
    further: Json
    """What is said of it under `raycl`."""


class Engine:
    """Answers with the state that is asked for. With several heads the base model is one; a state is read when it is put on
    it, so a change from one to another takes the time of reading it."""

    def __init__(self, heads: Mapping[str, Head], model: str | None, device: str | None, most_tokens: int) -> None:
        """`model` and `device` as in `raycl.load`; `most_tokens` bounds every answer."""
        self._heads, self._model, self._device, self._most = heads, model, device, most_tokens
        self._loaded: LoadedModel | None = None
        self._served: Served | None = None
        self._on: tuple[str, str | None] | None = None
        self.desk: Desk | None = None
        """What checks requests; none before the model is there."""

    def open(self) -> None:
        """Load the base model and put the first state on it. Raises UserError."""
        name, head = next(iter(self._heads.items()))
        self._loaded = load_base(head, self._model, self._device)
        self._put(name, head.spec.tasks[0] if head.needs_task else None)
        self.desk = Desk(self._heads, self._loaded, self._most)

    def answer(self, key: Key, questions: Sequence[Question]) -> list[Outcome]:
        """The state's answers, greedy."""
        served = self._put(key.name, key.task)
        found = served.answer([one.example for one in questions], key.tokens, len(questions))
        return [_outcome(served, one, answer) for one, answer in zip(questions, found, strict=True)]

    def close(self) -> None:
        """Take the state off."""
        if self._served is not None:
            self._served.close()
        self._served = self._on = None

    def _put(self, name: str, task: str | None) -> Served:
        """The state on the base model."""
        if self._served is None or self._on != (name, task):
            self.close()
            assert self._loaded is not None
            self._served, self._on = Served(self._heads[name], self._loaded, task), (name, task)
        return self._served


class RouteEngine(Engine):
    """Finds out whose weights would answer, and generates nothing."""

    def answer(self, key: Key, questions: Sequence[Question]) -> list[Outcome]:
        """Answers without a text, with their routes."""
        examples = [one.example for one in questions]
        routes = self._put(key.name, key.task).routes(examples)
        found = [Answer(one.prompt, "", route) for one, route in zip(examples, routes, strict=True)]
        return [Outcome(one, {"route": one.explained(())["route"]}) for one in found]


def _outcome(served: Served, question: Question, answer: Answer) -> Outcome:
    """An answer with what its request wants to know of it."""
    further: Json = {"cut": question.lost} if question.lost else {}
    if question.explain:
        answer = replace(answer, strengths=served.explain(question.example))
        further |= answer.explained(served.branches)
    return Outcome(answer, further)
