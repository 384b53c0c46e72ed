"""How a row becomes a prompt: the O-LoRA layout, and the two layouts of SAPT and GainLoRA.

Every layout gives three parts (head, body, tail) whose concatenation is the prompt of the released code, character by
character. What must survive when a prompt is too long stands in head and tail: see `raycl.tasks.task.Example`.
"""

from __future__ import annotations

from raycl.tasks.catalogue import TaskInfo
from raycl.tasks.rows import Row, Style

Parts = tuple[str, str, str]

_CHOOSE = "Choose one from the option.\n"

INSTRUCTIONS: dict[str, str] = {
    "NLI": f'What is the logical relationship between the "sentence 1" and the "sentence 2"? {_CHOOSE}',
    "QQP": f'Whether the "first sentence" and the "second sentence" have the same meaning? {_CHOOSE}',
    "SC": f"What is the sentiment of the following paragraph? {_CHOOSE}",
    "TC": f"What is the topic of the following paragraph? {_CHOOSE}",
    "BoolQA": f"According to the following passage, is the question true or false? {_CHOOSE}",
    "MultiRC": f"According to the following passage and question, is the candidate answer true or false? {_CHOOSE}",
    "WiC": (
        "Given a word and two sentences, whether the word is used with the same sense in both sentence? " + _CHOOSE
    ),
    "Roget": f"Under which heading of a thesaurus does the following entry stand? {_CHOOSE}",
    "Snippets": f"What is the verdict of the following snippet from a film review? {_CHOOSE}",
    "Plots": f"Is the following text from the plot summary of a film or from a review of it? {_CHOOSE}",
    "Speakers": f"Which side of a presidential debate does the speaker of the following words belong to? {_CHOOSE}",
}
"""Instruction of each category, as in O-LoRA's instruction file; COPA has none. The last four are the demo's own."""


def render(style: Style, info: TaskInfo, labels: tuple[str, ...] | None, row: Row, reveal_task: bool = False) -> Parts:
    """The prompt of `row` in the given layout, as (head, body, tail).

    `labels` are the options in order (used by `o_lora` only). `reveal_task` puts the lines `Task:` and `Dataset:` in
    front; in the two layouts of SAPT and GainLoRA the task type in that line is always `CL`.
    """
    if style == "o_lora":
        reveal = _reveal(info.category, info.folder) if reveal_task else ""
        return _split(reveal + _instruction(info, labels), row.text, "\nAnswer:", info.cue)
    reveal = _reveal("CL", info.name) if reveal_task else ""
    definition = row.definition.strip()
    if style == "long_sequence":
        head = f"{definition}\n" if definition else ""
    else:
        head = f"Definition: {definition}\n\nNow complete the following example -\nInput: "
    return _split(reveal + head, row.text, "\nOutput: ", info.cue)


def _instruction(info: TaskInfo, labels: tuple[str, ...] | None) -> str:
    """Instruction and options of the O-LoRA layout; empty for COPA, whose sentences hold their own question."""
    instruction = INSTRUCTIONS.get(info.category)
    return f"{instruction}Option: {', '.join(labels or ())} \n" if instruction else ""


def _reveal(category: str, dataset: str) -> str:
    """The lines that tell the model which task this is."""
    return f"Task:{category}\nDataset:{dataset}\n"


def _split(head: str, text: str, end: str, cue: str | None) -> Parts:
    """Body and tail of a text: the tail starts at the last `cue` (the question after a passage), else at the end."""
    start = text.rfind(cue) if cue else -1
    return (head, text, end) if start <= 0 else (head, text[:start], text[start:] + end)
