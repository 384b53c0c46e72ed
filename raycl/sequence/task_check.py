"""What a stream's tasks look like to a model, before anything is trained: counts, lengths, labels, duplicates, examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from raycl.models.load import load_tokenizer
from raycl.sections import DataSpec, ModelSpec
from raycl.sequence.ready import answer_problems, position_problems
from raycl.spec import RunSpec
from raycl.tasks.catalogue import Catalogue, is_published
from raycl.tasks.duplicates import Place, find_twins
from raycl.tasks.findings import SHARES, Sample, StreamCheck, TaskCheck
from raycl.tasks.load import load_tasks
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from raycl.train.chat import why_not

LOOKED_AT = 20_000
"""Rows of a split that are measured; of more, so many at even distances."""
SHOWN = 3
"""Examples of a task that are shown."""


def check_tasks(names: Sequence[str], known: Catalogue, spec: RunSpec) -> StreamCheck:
    """Load the tasks with these names and look at them as the model of `spec` would. Raises DataError for bad data."""
    without = [name for name in names if is_published(known.tasks[name]) and spec.data.source == "hub"]
    tasks = load_tasks([name for name in names if name not in without], spec.data)
    encoder, positions = text_side(spec.model, spec.data)
    limits = {"data.max_source_tokens": encoder.max_source, "data.max_target_tokens": encoder.max_target}
    limits |= {"positions of the model": positions} if positions else {}
    checks = tuple(_check(task, encoder) for task in tasks)
    readable = [task for task, one in zip(tasks, checks, strict=True) if one.prompt_tokens]
    too_long = tuple(position_problems(positions, encoder, readable))
    return StreamCheck(checks, tuple(find_twins(_texts(tasks))), limits, tuple(without), too_long)


def text_side(model: ModelSpec, data: DataSpec) -> tuple[Encoder, int | None]:
    """What tokenises examples as a run would, and how many positions the model has; no weights are read."""
    side = load_tokenizer(model)
    encoder = Encoder(side.tokenizer, side.encoder_decoder, data.max_source_tokens, data.max_target_tokens)
    return encoder, side.positions


def samples(task: Task, encoder: Encoder, count: int = SHOWN) -> tuple[Sample, ...]:
    """The first examples of a task as the model reads them, of different labels where it has any."""
    chosen: dict[str, Example] = {}
    for example in task.train:
        chosen.setdefault(example.answers[0] if task.labels else example.id, example)
        if len(chosen) == count:
            break
    return tuple(_sample(example, encoder) for example in chosen.values())


def _sample(example: Example, encoder: Encoder) -> Sample:
    (one,) = encoder.encode([example])
    decode = encoder.tokenizer.decode
    cut = encoder.prompt_length(example) > len(one.prompt)
    return Sample(
        example.id,
        str(decode(list(one.prompt))),
        str(decode(list(one.answer))),
        (len(one.prompt), len(one.answer)),
        cut,
    )


def _check(task: Task, encoder: Encoder) -> TaskCheck:
    rows = {"train": task.train, "test": task.test}
    looked = [example for split in rows.values() for example in spread(split)]
    why = why_not(encoder.tokenizer, chain(task.train, task.test)) if task.in_chat else None
    if why:
        facts = ((), (), 0.0, ())
        return TaskCheck(task.name, _metrics(task), _counts(task), _labels(task), *facts, problems=(f"chat: {why}",))
    lengths = sorted(encoder.prompt_length(example) for example in looked)
    answers = sorted(encoder.answer_length(example.answers[0], task.in_chat) for example in looked)
    return TaskCheck(
        task.name,
        _metrics(task),
        _counts(task),
        _labels(task),
        _percentiles(lengths),
        _percentiles(answers),
        sum(length > encoder.max_source for length in lengths) / len(lengths),
        samples(task, encoder),
        tuple(_warnings(task, encoder, answers)),
        tuple(answer_problems(encoder, task)),
    )


def spread(examples: Sequence[Example], most: int = LOOKED_AT) -> Iterator[Example]:
    """All of few examples, and of many some at even distances: at least `most`, less than twice as many."""
    step = max(1, len(examples) // most)
    return iter(examples) if step == 1 else (examples[place] for place in range(0, len(examples), step))


def _metrics(task: Task) -> tuple[str, ...]:
    return (task.metric, *task.metrics)


def _counts(task: Task) -> dict[str, int]:
    return {"train": len(task.train), "test": len(task.test)}


def _labels(task: Task) -> dict[str, tuple[int, int]] | None:
    if task.labels is None:
        return None
    train, test = (Counter(example.answers[0] for example in split) for split in (task.train, task.test))
    return {label: (train[label], test[label]) for label in task.labels}


def _percentiles(ordered: Sequence[int]) -> tuple[int, ...]:
    """The smallest value that at least each share of the values reaches at most."""
    return tuple(ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] for share in SHARES)


def _warnings(task: Task, encoder: Encoder, answers: Sequence[int]) -> Iterator[str]:
    """What a run would go through with, and its user should know."""
    labels = _labels(task) or {}
    if never := [label for label, (train, _) in labels.items() if train == 0]:
        yield f"never trained: {', '.join(never)}"
    if never := [label for label, (_, test) in labels.items() if test == 0]:
        yield f"never tested: {', '.join(never)}"
    long = (example for example in spread(task.train) if encoder.prompt_length(example) > encoder.max_source)
    if bare := sum(one.body is not None and one.body[0] == one.body[1] for one in encoder.encode(long)):
        yield (
            f"{bare:,} training prompts have nothing left of their text: what stands around it takes all of "
            f"data.max_source_tokens={encoder.max_source}"
        )
    limit = task.answer_tokens or encoder.max_target
    if not labels and (cut := sum(length > limit for length in answers)):
        yield f"{cut / len(answers):.1%} of the answers are longer than {limit} tokens and are cut"
    texts = {example.answers[0] for example in spread(task.train)}
    if lost := [text for text in sorted(texts) if not encoder.read_back(text, task.in_chat)]:
        yield f"{len(lost)} answers tokenise to nothing, such as {lost[0]!r}"


def _texts(tasks: Sequence[Task]) -> Iterator[tuple[Place, str]]:
    """Every row's own text, with where it stands."""
    for task in tasks:
        for split, examples in (("train", task.train), ("test", task.test)):
            place = Place(task.name, split)
            yield from ((place, example.body + example.tail) for example in spread(examples))
