"""The one check between loading the base model and the first step: whether this run can work with it, in one message."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain

from torch import nn

from raycl.adapters.branches import refusal
from raycl.adapters.carriers import carries_branch
from raycl.adapters.targets import every_path, matches
from raycl.errors import DataError, SpecError, one_message, shown
from raycl.models.load import LoadedModel
from raycl.spec import MethodParams, RunSpec
from raycl.tasks.code import require_code
from raycl.tasks.scoring import score
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from raycl.train.chat import why_not

HINT = "Nothing was trained. Mend the model's folder or the settings, and run the same command again."


def require_ready(loaded: LoadedModel, encoder: Encoder, spec: RunSpec, tasks: Sequence[Task]) -> None:
    """Raise SpecError with everything that keeps a run from training or scoring with this model; warn of cut answers."""
    for task in tasks:
        require_code(task.code)
    problems = list(loaded.faults)
    if not problems:
        problems += _targets(loaded, spec.method)
        problems += _quantised(spec, len(tasks))
        problems += _compared(spec, len(tasks))
        reasons = {task.name: why_not(loaded.tokenizer, chain(task.train, task.test)) for task in tasks if task.in_chat}
        problems += [f"task {name}: chat: {why}" for name, why in reasons.items() if why]
        tasks = [task for task in tasks if not reasons.get(task.name)]
        problems += [line for task in tasks for line in answer_problems(encoder, task)]
        soft, shown = spec.method.soft_tokens(len(tasks)), spec.method.shows_answers()
        problems += position_problems(loaded.positions, encoder, tasks, soft, shown)
    if problems:
        raise SpecError(one_message(f"the model {loaded.name}", problems, HINT))
    for task in tasks:
        _warn_of_cut_answers(encoder, task)


# --- modules --------------------------------------------------------------------------------------------------------------


def _targets(loaded: LoadedModel, method: MethodParams) -> Iterator[str]:
    """Modules that a method is to adapt and cannot."""
    if not method.adapts_modules():
        return
    wanted = getattr(method, "targets", None) or loaded.backbone.targets
    fit = sorted({path.rpartition(".")[2] for path in loaded.backbone.regions})
    if not wanted:
        yield (
            f"method.targets: raycl finds no attention, so no modules to adapt, in this model; name some, for example "
            f"--set 'method.targets=[{fit[0]}]'; its linear modules are {', '.join(fit)}"
        )
    problems = [line for entry in wanted for line in _entry(loaded, entry, method, fit)]
    yield from problems
    if wanted and not problems and (reason := refusal(loaded.backbone, tuple(wanted))):
        yield f"method.targets: {reason}"


def _entry(loaded: LoadedModel, entry: str, method: MethodParams, fit: list[str]) -> Iterator[str]:
    """What is wrong with one entry; `fit` are the names that there are."""
    paths = matches(loaded.backbone, entry, every_path(loaded.backbone))
    if not paths:
        close = difflib.get_close_matches(entry, fit, n=1)
        nearest = f" (nearest: {close[0]})" if close else ""
        yield f"method.targets: {shown(entry)} names no module{nearest}; allowed: {', '.join(fit)}"
    problems = (_unfit(loaded, path, loaded.backbone.model.get_submodule(path), method) for path in paths)
    if problem := next((one for one in problems if one), None):
        yield f"method.targets: {problem}; allowed: {', '.join(fit)}"


def _unfit(loaded: LoadedModel, path: str, module: nn.Module, method: MethodParams) -> str | None:
    """Why a module cannot carry this method's branch; none if it can."""
    if not carries_branch(module):
        return f"{path} is no linear module but of the type {type(module).__name__}"
    if path not in loaded.backbone.regions:
        return f"{path} is not called in a forward pass, so a branch has no effect there"
    embedding = loaded.backbone.model.get_input_embeddings().weight
    if method.writes_weights() and module.get_parameter("weight") is embedding:
        return f"{path} shares its weight with the token embedding, which merging into it would change too"
    return None


def _quantised(spec: RunSpec, stages: int) -> Iterator[str]:
    """Weights of few bits can be read, neither trained nor added to."""
    method, trains = spec.method, _trains_base(spec.method, stages)
    if spec.model.quantization != "none" and (trains or method.writes_weights() or method.reads_weights()):
        does = "trains" if trains else "merges into" if method.writes_weights() else "computes with"
        yield (
            f"model.quantization: {spec.model.quantization} keeps the base weights as they are, and {method.name} {does} "
            "the base weights with these settings; set it to none, or take a method or settings that put adapters or "
            "prompts on the model"
        )


def _compared(spec: RunSpec, stages: int) -> Iterator[str]:
    """A base model whose own weights train is not there to compare with."""
    if spec.train.base_kl and _trains_base(spec.method, stages):
        yield (
            f"train.base_kl: {spec.train.base_kl} holds the model to the base model, whose weights {spec.method.name} "
            "trains with these settings; set it to 0, or take a method or settings that put adapters or prompts on the model"
        )


def _trains_base(method: MethodParams, stages: int) -> bool:
    """Whether the base model's own weights are what trains."""
    return not method.adapts_modules() and not method.soft_tokens(stages)


# --- answers --------------------------------------------------------------------------------------------------------------


def answer_problems(encoder: Encoder, task: Task) -> Iterator[str]:
    """Why a task's answers could not be scored: its metrics are tried before a stage has been trained for them."""
    failures = list(_failing(task))
    yield from failures
    if task.labels and not failures:
        yield from _label_problems(encoder, task)


def _failing(task: Task) -> Iterator[str]:
    """Functions of the user's that fail on the first test example answered rightly, or answered with nothing."""
    first = task.test[:1]
    for metric in task.code if first else ():
        try:
            for said in (first[0].answers[0], ""):
                score(metric, [said], [first[0]], task.code)
        except DataError as error:
            yield f"task {task.name}: {error}"


def _label_problems(encoder: Encoder, task: Task) -> Iterator[str]:
    """Labels that the model can never answer: cut by the limit, or not written by its tokenizer."""
    labels = task.closed or ()
    lengths = {label: encoder.answer_length(label, task.in_chat) for label in labels}
    longest = max(labels, key=lengths.__getitem__)
    limit = task.answer_tokens or encoder.max_target
    cut = [label for label in labels if lengths[label] > limit]
    if cut:
        yield (
            f"data.max_target_tokens: {limit} cuts {len(cut)} of the {len(labels)} labels of {task.name}; the "
            f"longest, {shown(longest)}, takes {lengths[longest]} with its end token"
        )
    for label in labels:
        written = encoder.read_back(label, task.in_chat)
        if not score(task.metric, [written], [Example("", "", "", "", (label,))], task.code):
            yield (
                f"task {task.name}: the label {shown(label)} can never be answered: the tokenizer writes it as "
                f"{shown(written)}, "
                f"which {task.metric} does not count; use another label word, or a model whose tokenizer knows it"
            )


def _warn_of_cut_answers(encoder: Encoder, task: Task) -> None:
    """Say what share of free-text answers training and generation cut."""
    if task.labels or not task.train:
        return
    limit = task.answer_tokens or encoder.max_target
    cut = sum(encoder.answer_length(example.answers[0], task.in_chat) > limit for example in task.train)
    if cut:
        warnings.warn(
            f"{task.name}: {cut / len(task.train):.0%} of the training answers are longer than "
            f"data.max_target_tokens={limit} and are cut",
            stacklevel=2,
        )


# --- lengths --------------------------------------------------------------------------------------------------------------


def position_problems(
    limit: int | None, encoder: Encoder, tasks: Sequence[Task], soft: int = 0, shown: bool = False
) -> Iterator[str]:
    """Inputs that, with `soft` tokens of soft prompts, or in training after a demonstration that is `shown`, are longer than
    a model of `limit` positions has any for.

    Texts are only measured where the limits alone do not settle it.
    """
    if limit is None or encoder.read(encoder.max_source, encoder.max_target, shown) + soft <= limit:
        return
    longest = max((_longest(encoder, task, shown) for task in tasks), default=0) + soft
    if longest > limit:
        with_soft = f" with {soft} of the method's soft prompts" if soft else ""
        with_soft += " with the demonstrations that the method puts before them" if shown else ""
        less = math.ceil((longest - limit) / (2 if shown else 1))
        yield (
            f"data.max_source_tokens: {encoder.max_source} (and data.max_target_tokens {encoder.max_target}) lets inputs of "
            f"{longest} tokens{with_soft} through; the model has {limit} positions; lower it by {less}"
        )


def _longest(encoder: Encoder, task: Task, shown: bool) -> int:
    """Tokens of a task's longest input with the answer that generation may give it; training may show each row first."""
    answer = encoder.generated(task)
    trained = (encoder.input_length(example, answer, shown) for example in task.train)
    return max(chain(trained, (encoder.input_length(example, answer) for example in task.test)), default=0)
