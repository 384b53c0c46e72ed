"""How a row becomes a prompt: named layouts, or one that a stream brings.

A layout is two templates, of what stands before the text and of what stands after it; they give three parts (head, body,
tail). Of the layouts of O-LoRA, SAPT and GainLoRA the concatenation is the prompt of the released code, character by
character. What must survive when a prompt is too long stands in head and tail: see `raycl.tasks.task.Example`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raycl.tasks.rows import Row, complaint
from raycl.tasks.stream import Demo, PromptParts, Published, Style, TaskEntry
from raycl.tasks.templates import render

Parts = tuple[str, str, str]

_ASK = (
    "{% if instruction %}{{ instruction }}\n{% endif %}{% if labels %}Options: {{ labels | join(', ') }}\n{% endif %}"
)
_REVEAL = "{% if reveal %}Task:CL\nDataset:{{ task }}\n{% endif %}"
LAYOUTS: dict[Style, PromptParts] = {
    "plain": PromptParts(head=_ASK, tail="\nAnswer:"),
    "chat": PromptParts(head=_ASK, tail=""),
    "o_lora": PromptParts(
        head="{% if reveal %}Task:{{ category }}\nDataset:{{ dataset }}\n{% endif %}"
        "{% if instruction %}{{ instruction }}\nOption: {{ labels | join(', ') }} \n{% endif %}",
        tail="\nAnswer:",
    ),
    "long_sequence": PromptParts(head=_REVEAL + "{% if definition %}{{ definition }}\n{% endif %}", tail="\nOutput: "),
    "superni": PromptParts(
        head=_REVEAL + "Definition: {{ definition }}\n\nNow complete the following example -\nInput: ",
        tail="\nOutput: ",
    ),
}
"""`plain` is that of tasks of one's own, and `chat` that of those inside a chat template. `o_lora` is O-LoRA's layout,
`long_sequence` and `superni` are SAPT's and GainLoRA's; in their line `Task:` the type is always CL."""


@dataclass
class Renderer:
    """Turns a task's rows into prompts. `labels` are the options in order. Raises DataError for a template that fails."""

    entry: TaskEntry
    layout: Style | PromptParts
    labels: tuple[str, ...] | None
    reveal_task: bool = False
    """Put the lines `Task:` and `Dataset:` in front, where the layout has them."""
    _last: tuple[str, str, str] | None = field(default=None, init=False, repr=False)
    """The last definition, with what it put before and after the text: mostly it is the next row's too."""

    def __call__(self, row: Row) -> Parts:
        """The prompt as (head, body, tail): the tail starts at the last `cue` (the question after a passage), else at the
        text's end."""
        definition = row.definition.strip() or self._stated
        if self._last is None or self._last[0] != definition:
            self._last = (definition, *self._around(definition))
        _, head, end = self._last
        cue = self.entry.cue
        start = row.text.rfind(cue) if cue else -1
        return (head, row.text, end) if start <= 0 else (head, row.text[:start], row.text[start:] + end)

    @property
    def _stated(self) -> str:
        """The definition of a task of one's own: the layouts that ask for one would else leave its instruction out."""
        return "" if isinstance(self.entry.data, Published | Demo) else self.entry.instruction

    def _around(self, definition: str) -> tuple[str, str]:
        """What stands before and after the text."""
        entry, layout = self.entry, self.layout
        parts = LAYOUTS[layout] if isinstance(layout, str) else layout
        values = {
            "instruction": entry.instruction,
            "labels": list(self.labels or ()),
            "definition": definition,
            "task": entry.name,
            "category": entry.category,
            "dataset": entry.data.published if isinstance(entry.data, Published) else entry.name,
            "reveal": self.reveal_task,
        }
        try:
            return render(parts.head, values), render(parts.tail, values)
        except ValueError as error:
            raise complaint(
                f"task {entry.name}, prompt",
                f"a template fails ({error})",
                ", ".join(values),
                "correct `head` or `tail`",
            ) from None
