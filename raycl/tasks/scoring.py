"""Scores of generated answers: exact match for labels, and ROUGE-L for free text."""

from __future__ import annotations

import functools
import math
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from raycl.tasks.task import Example, Metric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case text without ASCII punctuation and with single spaces; articles stay."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one of the normalised answers, else 0.0.

    An answer of which normalising leaves nothing (`+`) is compared as it is: an empty prediction is not right.
    """
    given = normalise(prediction)
    return float(any(given == bare if (bare := normalise(one)) else raw_match(prediction, [one]) for one in answers))


def raw_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the answers but for white space around it, else 0.0."""
    return float(prediction.strip() in {answer.strip() for answer in answers})


def label_metric(labels: Sequence[str]) -> Metric:
    """What tells the labels of a set apart: `exact_match`, or, where normalising makes two alike or leaves nothing of one
    (`-1` and `1`, `+` and `-`), `raw_match`. Raises ValueError naming labels that only white space tells apart."""
    if _distinct([normalise(label) for label in labels]):
        return "exact_match"
    if _distinct([label.strip() for label in labels]):
        return "raw_match"
    stripped = Counter(label.strip() for label in labels)
    twins = [label for label in labels if stripped[label.strip()] > 1 or not label.strip()]
    raise ValueError(f"the labels {', '.join(map(repr, twins))} differ in white space only")


def _distinct(forms: Sequence[str]) -> bool:
    """Whether none is empty and no two are equal."""
    return all(forms) and len(set(forms)) == len(forms)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Highest ROUGE-L F-measure over the answers, with Porter stemming; 0.0 to 1.0."""
    scorer = _rouge_scorer()
    return max(float(scorer.score(answer, prediction)["rougeL"].fmeasure) for answer in answers)


def score(metric: Metric, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    """Mean score of the predictions, 0 to 100.

    Raises ValueError for an unknown metric, no examples, or unequal numbers of predictions and examples.
    """
    measures = {"exact_match": exact_match, "raw_match": raw_match, "rouge_l": rouge_l}
    if metric not in measures:
        raise ValueError(f"metric: {metric!r}; allowed: {', '.join(measures)}")
    if not examples or len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples; allowed: equal, at least one")
    measure = measures[metric]
    pairs = zip(predictions, examples, strict=True)
    return 100 * math.fsum(measure(prediction, example.answers) for prediction, example in pairs) / len(examples)


@functools.lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    """The scorer, made once: its stemmer is costly to build."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
