"""The page about an export, in the hub's format: what it is, how exact it is, how it is loaded, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raycl.analysis.matrix import AccuracyMatrix
from raycl.methods.common.base import About
from raycl.report.tables import matrix_markdown, number


@dataclass(frozen=True)
class Loss:
    """What one task's score was as served, and is in an export; 0 to 100."""

    task: str
    served: float
    exported: float
    examples: int
    """Test examples that both were measured on."""


@dataclass(frozen=True)
class ModelCard:
    """What the page says; the template `model_card.md` puts it into words."""

    title: str
    version: str
    """Of raycl."""
    form: str
    """`adapter`, `model` or `routed`."""
    what: str
    """One sentence: what lies in the folder."""
    exactness: str
    losses: Sequence[Loss]
    logits_change: float | None
    code: str
    vllm: str | None
    base: str
    hub_base: str | None
    """The hub's name of the base model, if it is known there."""
    revision: str | None
    fingerprint: str
    tags: Sequence[str]
    stages: Sequence[Mapping[str, str]]
    """Per stage: task, key, train (the SHA-256 of its training examples), created."""
    data: Sequence[Mapping[str, Any]]
    """Per task: task, train and test (counts), source, licence."""
    scores: AccuracyMatrix | None
    method: str
    about: About
    settings: str
    """The method's and the training's, as JSON."""

    @property
    def matrix(self) -> str | None:
        """The scores as a table."""
        return None if self.scores is None else matrix_markdown(self.scores)

    @property
    def ap(self) -> str:
        """AP after the last stage."""
        return "-" if self.scores is None else number(self.scores.ap())

    @property
    def forgetting(self) -> str:
        """FT after the last stage."""
        return "-" if self.scores is None else number(self.scores.forgetting())


def model_card(card: ModelCard) -> str:
    """The page as Markdown with the hub's YAML in front."""
    environment = Environment(
        loader=PackageLoader("raycl.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md").render(card=card)


IMPORTS = """from transformers import {auto}, AutoTokenizer

folder = "."  # this folder, or where it was put
"""
ANSWER = """inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True))"""
BASE = """base = {base}
tokenizer = AutoTokenizer.from_pretrained(base)
model = {auto}.from_pretrained(base, dtype="float32")
"""
CODE = {
    "adapter": "from peft import PeftModel\n"
    + IMPORTS
    + BASE
    + "model = PeftModel.from_pretrained(model, folder).eval()\n",
    "model": IMPORTS
    + "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
    + 'model = {auto}.from_pretrained(folder, dtype="auto").eval()\n',
    "tasks": "from peft import PeftModel\n"
    + IMPORTS
    + BASE
    + "task = {task}  # whose inputs come\n"
    + 'model = PeftModel.from_pretrained(model, f"{{folder}}/adapters/{{task}}").eval()\n',
    "routed": "import sys\n\nfrom peft import PeftModel\n"
    + IMPORTS
    + BASE
    + """sys.path.insert(0, folder)
from route import Router

router = Router(folder, model, tokenizer)
task = router.task({prompt})  # None: like no task, the base model answers
if task is not None:
    model = PeftModel.from_pretrained(model, f"{{folder}}/adapters/{{task}}").eval()
""",
}


def loading_code(form: str, base: str, task: str, prompt: str, encoder_decoder: bool) -> str:
    """A program that loads an export and answers one prompt; `form` as in `CODE`."""
    auto = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    words = {"auto": auto, "base": repr(base), "task": repr(task), "prompt": repr(prompt)}
    return (CODE[form] + ANSWER).format(**words)
