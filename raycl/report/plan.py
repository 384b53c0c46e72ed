"""What a sequence is going to do, in words: method, model, learning rate, and where."""

from __future__ import annotations

from collections.abc import Mapping

from raycl.events import SequenceStart
from raycl.files import Json


def plan_lines(event: SequenceStart) -> list[str]:
    """One line each: method, model, learning rate, and the places that the event names; what is not known is left out."""
    return aligned({**settings_words(event.spec), **event.places})


def aligned(facts: Mapping[str, str]) -> list[str]:
    """One line for each name and its text, the texts below each other."""
    width = max(map(len, facts), default=0)
    return [f"{name:<{width}}  {text}" for name, text in facts.items()]


def settings_words(spec: Json) -> dict[str, str]:
    """Method, model and learning rate of a spec, as far as it has them."""
    facts: dict[str, str] = {}
    if method := spec.get("method"):
        over = f" over {method['over']}" if method.get("over") else ""
        facts["method"] = f"{method['name']}{over}, seed {spec['seed']}"
    if model := spec.get("model"):
        facts["model"] = f"{model['name']}, {model['precision']}"
    if "lr" in spec.get("train", {}):
        rate = spec["train"]["lr"]
        rates = [f"{one:g}" for one in rate] if isinstance(rate, list) else [f"{rate:g}"]
        facts["learning rate"] = ", ".join(rates) + (" (by stage)" if len(rates) > 1 else "")
    return facts
