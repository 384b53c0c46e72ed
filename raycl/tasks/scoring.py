"""Scores of generated answers: the one table of metrics, for training's end and for every later evaluation.

| metric | what it is | range |
| --- | --- | --- |
| `exact_match` | equal after normalising: lower case, no ASCII punctuation, single spaces | 0 or 1 an answer |
| `raw_match` | equal but for white space around it | 0 or 1 an answer |
| `rouge_l`, `rouge_l_unicode` | F-measure of the longest common subsequence of words (rouge-score) | 0 to 1 an answer |
| `token_f1` | F-measure of the words in common, as in SQuAD, articles kept | 0 to 1 an answer |
| `bleu`, `chrf` | of all answers together (package sacrebleu, its defaults) | 0 to 100 |
| `module:name` | a Python function of the user's: (prediction, references) -> a number from 0 to 1 | as it says |

Of several references the best counts; BLEU and chrF use them all.
"""

from __future__ import annotations

import functools
import math
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from raycl.tasks.code import Code, is_code, own_measure
from raycl.tasks.task import Example, Metric
from raycl.tasks.words import WORDS, Words

UNSEEN_SHARE = 0.05
"""Share of a task's answers that ROUGE-L may hardly see: odd rows do not make another metric of it."""
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


def label_metric(labels: Sequence[str], aliases: Mapping[str, Sequence[str]] | None = None) -> Metric:
    """What tells the labels of a set apart: `exact_match`, or, where normalising makes two alike or leaves nothing of one
    (`-1` and `1`, `+` and `-`), `raw_match`. `aliases` of one label may be alike (`yes` and `Yes`), not those of two.

    Raises ValueError naming labels that only white space tells apart.
    """
    words = {label: [label, *(aliases or {}).get(label, ())] for label in labels}
    if _distinct(words, normalise):
        return "exact_match"
    if _distinct(words, str.strip):
        return "raw_match"
    every = [word for group in words.values() for word in group]
    stripped = Counter(word.strip() for word in every)
    twins = [word for word in every if stripped[word.strip()] > 1 or not word.strip()]
    raise ValueError(f"the labels {', '.join(map(repr, twins))} differ in white space only")


def _distinct(words: Mapping[str, Sequence[str]], form: Callable[[str], str]) -> bool:
    """Whether no word's form is empty and none is that of a word for another label."""
    forms = [{form(word) for word in group} for group in words.values()]
    return all(map(all, forms)) and len(set().union(*forms)) == sum(map(len, forms))


def text_metric(answers: Iterable[str]) -> Metric:
    """`rouge_l`, as the field counts; `rouge_l_unicode` where that hardly sees what stands in some of the answers."""
    unseen = [_mostly_unseen(answer) for answer in answers]
    return "rouge_l_unicode" if unseen and sum(unseen) >= UNSEEN_SHARE * len(unseen) else "rouge_l"


def _mostly_unseen(text: str) -> bool:
    """Whether at least half of the letters and digits are outside ASCII; true of a text without any."""
    counted = [char.isascii() for char in text if char.isalnum()]
    return 2 * sum(counted) <= len(counted)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Highest ROUGE-L F-measure over the answers, with Porter stemming; 0.0 to 1.0.

    As the package rouge-score counts, and with it the field: words are runs of ASCII letters and digits.
    """
    return _rouge(_rouge_scorer(), prediction, answers)


def rouge_l_unicode(prediction: str, answers: Sequence[str]) -> float:
    """The same over the words of any script, which for ASCII text are the same words (`raycl.tasks.words`)."""
    return _rouge(_unicode_scorer(), prediction, answers)


def _rouge(scorer: Any, prediction: str, answers: Sequence[str]) -> float:
    return max(float(scorer.score(answer, prediction)["rougeL"].fmeasure) for answer in answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Highest F-measure over the answers of the words that a prediction has in common with one, each as often as in both.

    Words are what `normalise` leaves, in scripts without spaces each letter. An answer that has none (`+`) is compared as
    it is.
    """
    given = _words(prediction)
    return max(_f1(given, bare) if (bare := _words(one)) else raw_match(prediction, [one]) for one in answers)


def _words(text: str) -> Counter[str]:
    return Counter(WORDS.findall(normalise(text)))


def _f1(one: Counter[str], other: Counter[str]) -> float:
    return 2 * (one & other).total() / (one.total() + other.total())


def _bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    from sacrebleu import corpus_bleu

    return corpus_bleu(list(predictions), _by_reference(answers)).score


def _chrf(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    from sacrebleu import corpus_chrf

    return corpus_chrf(list(predictions), _by_reference(answers)).score


def _by_reference(answers: Sequence[Sequence[str]]) -> Any:
    """All first references, all second ones, ...: sacrebleu's form, in which none stands where an example has fewer."""
    return [list(column) for column in zip_longest(*answers)] if answers else []


Measure = Callable[[str, Sequence[str]], float]
"""(prediction, references) -> 0 to 1."""
MEASURES: dict[str, Measure] = {
    "exact_match": exact_match,
    "raw_match": raw_match,
    "rouge_l": rouge_l,
    "rouge_l_unicode": rouge_l_unicode,
    "token_f1": token_f1,
}
"""Metrics that are means over examples."""
CORPUS = {"bleu": _bleu, "chrf": _chrf}
"""Metrics of all answers together: (predictions, references) -> 0 to 100."""
METRICS = (*MEASURES, *CORPUS)


def known_metric(metric: str) -> str:
    """`metric` if it is in the table or names a function, `module:name`. Raises ValueError."""
    if metric in METRICS or is_code(metric):
        return metric
    raise ValueError(f"metric {metric!r}; allowed: {', '.join(METRICS)}, or a function `module:name`")


def score(
    metric: Metric, predictions: Sequence[str], examples: Sequence[Example], code: Mapping[Metric, Code] | None = None
) -> float:
    """The score of the predictions, 0 to 100: the mean over the examples, or a metric of all of them together.

    `code` says where a function of the user's is found (`Task.code`).
    Raises ValueError for an unknown metric, no examples, or unequal numbers of predictions and examples, DataError for a
    function of the user's that fails or gives something else than a number from 0 to 1.
    """
    known_metric(metric)
    if not examples or len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples; allowed: equal, at least one")
    answers = [example.answers for example in examples]
    if metric in CORPUS:
        return float(CORPUS[metric](predictions, answers))
    if is_code(metric) and metric not in (code or {}):
        raise ValueError(f"metric {metric!r} is a function: give the task's `code`, which says where it is")
    measure = MEASURES.get(metric) or own_measure(metric, (code or {})[metric])
    return 100 * math.fsum(map(measure, predictions, answers)) / len(examples)


@functools.lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    """The scorer, made once: its stemmer is costly to build."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


@functools.lru_cache(maxsize=1)
def _unicode_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())
