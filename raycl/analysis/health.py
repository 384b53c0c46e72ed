"""Signs that a stage went wrong in training, or did not learn what its score seems to say.

Each check takes numbers and gives sentences. Thresholds are such that a sound stage shows none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from raycl.events import Step

FEWEST = 20
"""Test examples below which nothing is said: a few are right or wrong by chance."""

GROWN = 1.5
"""So many times its first value a loss must end at to have grown."""
JUMP = 100.0
"""So many times what is usual a gradient or an update must be to be out of all proportion."""
EARLIER = 5
"""Records of gradients before which none is usual."""
GATES = ("gate_mean", "attention")
"""Gauges `<name>/<stage>` that weigh a stage's branch on the rows that it has just trained on."""
SHUT = 0.01
"""A weight below which a branch is as good as not there."""


def training_signs(log: Sequence[Step], vocabulary: int, lengths: Sequence[float]) -> list[str]:
    """What is to be said of a stage's training, a sentence each.

    `vocabulary` counts the model's tokens; `lengths` are those of the branches' updates, oldest first and the stage's own
    last, as far as they are known.
    """
    found = [_grown(log, vocabulary), _jumped(log), _outgrown(lengths), _shut(log)]
    return [sign for sign in found if sign]


def _grown(log: Sequence[Step], vocabulary: int) -> str:
    """A loss that has grown above that of guessing any token of the vocabulary."""
    guess = math.log(vocabulary)
    if len(log) < 2 or log[-1].loss <= max(guess, GROWN * log[0].loss):
        return ""
    return (
        f"the loss grew from {log[0].loss:.3g} to {log[-1].loss:.3g}, and guessing any token has {guess:.3g}: the weights "
        "are spoilt; lower train.lr, or give train.warmup"
    )


def _jumped(log: Sequence[Step]) -> str:
    """A gradient that is longer than all before by far."""
    norms = [(one.step, norm) for one in log if (norm := one.gauges.get("grad_norm")) is not None]
    for place in range(EARLIER, len(norms)):
        step, norm = norms[place]
        longest = max(earlier for _, earlier in norms[:place])
        if norm > JUMP * longest > 0:
            return (
                f"the gradient had the length {norm:.3g} at step {step}, and {longest:.3g} at most before: a broken row of "
                "the training data, or too high a train.lr"
            )
    return ""


def _outgrown(lengths: Sequence[float]) -> str:
    """An update that is longer than those of the stages before by far."""
    *earlier, own = lengths or [0.0]
    if not earlier or own <= JUMP * median(earlier) or median(earlier) == 0:
        return ""
    return (
        f"its branch's update has the length {own:.3g}, those before {median(earlier):.3g} (median): it drowns what they "
        "know; lower train.lr, or look at the stage's data"
    )


def _shut(log: Sequence[Step]) -> str:
    """A gate that keeps the stage's branch from its own task."""
    gauges: Mapping[str, float] = log[-1].gauges if log else {}
    for name in GATES:
        weight = gauges.get(f"{name}/{log[-1].stage}" if log else "")
        if weight is not None and weight < SHUT:
            return (
                f"its branch has the weight {weight:.3g} ({name}) on its own task: it is not used; train longer, or with "
                "a higher train.lr, and look at the method's settings of gates"
            )
    return ""


def signs(
    score: float, answers: Sequence[Sequence[str]], labels: Sequence[str] | None, ended: Sequence[bool]
) -> list[str]:
    """What is to be said of a task's score right after its own stage, a sentence each.

    `score` is 0 to 100; `answers` are the right ones, example by example, `labels` those that the task may answer (none =
    free text), `ended` whether each answer came to its end token and not to the limit.
    """
    found: list[str] = []
    if len(answers) < FEWEST:
        return found
    if labels:
        label, count = Counter(right[0] for right in answers).most_common(1)[0]
        guess = 100 * count / len(answers)
        if score <= guess:
            found.append(
                f"{score:.1f} after its own stage is no more than always answering {label!r} ({guess:.1f}): the stage has "
                "learned nothing that can be told; more steps, or another train.lr"
            )
    if not any(ended):
        found.append(
            "no answer came to its end before the limit of tokens: the model has not learned to stop; more steps, a higher "
            "data.max_target_tokens, or a chat template where the model needs one"
        )
    return found
