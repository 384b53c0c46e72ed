"""A tokenizer's own chat template, as what it writes before and after a message of the user."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from raycl.errors import DataError, first_line
from raycl.tasks.task import Example, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime(2024, 7, 26)
"""What a template that writes the date takes for it (Llama 3's own default): prompts must not change from day to day."""
MARK = "\u2402"
"""Stands for the message while the template is asked; templates strip spaces, but no visible character."""


def why_not(tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example]) -> str | None:
    """Why a tokenizer cannot write the chats of a task's examples; none if it can.

    Of the messages before a prompt it is their roles that a template refuses, so each succession of roles is tried once.
    """
    if not getattr(tokenizer, "chat_template", None):
        return "its tokenizer has no chat template; take a chat model, or leave `chat` out of the stream"
    try:
        around(tokenizer, ())
        message_end(tokenizer)
    except DataError as error:
        return str(error)
    tried: set[tuple[str, ...]] = set()
    for example in examples:
        earlier = example.chat or ()
        roles = tuple(role for role, _ in earlier)
        if roles in tried:
            continue
        tried.add(roles)
        try:
            around(tokenizer, earlier)
        except DataError as error:
            return (
                f"example {example.id}: {error}; correct or remove such rows, or take a model whose template has them"
            )
    return None


@lru_cache(maxsize=4096)
def around(tokenizer: PreTrainedTokenizerBase, earlier: Turns) -> tuple[str, str]:
    """What stands before and after a message of the user that the assistant is to answer, after `earlier` messages.

    Raises DataError where the template refuses these messages, or does not write the message as it is.
    """
    text = _written(tokenizer, [*earlier, ("user", MARK)], add_generation_prompt=True)
    before, mark, after = text.partition(MARK)
    if not mark or MARK in after:
        raise DataError("the tokenizer's chat template does not write a message of the user as it is")
    return before, after


@lru_cache(maxsize=8)
def message_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's message: the first one after it if that is a special token, else the end token."""
    after = _written(tokenizer, [("user", "a"), ("assistant", MARK)]).partition(MARK)[2]
    ids: Any = tokenizer(after, add_special_tokens=False).input_ids
    end: Any = tokenizer.eos_token_id
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    return int(ids[0]) if ids and ids[0] in special else end


def _written(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], **how: Any) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        template = _dated(str(tokenizer.get_chat_template()))
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **how))
    except Exception as error:  # a template may raise whatever it likes
        roles = ", ".join(role for role, _ in turns)
        raise DataError(f"the tokenizer's chat template refuses the messages {roles} ({first_line(error)})") from None


def _dated(template: str) -> str:
    """A chat template in which `strftime_now` writes `TODAY` and not the clock's date."""
    forms = dict.fromkeys(form for _, form in re.findall(r"strftime_now\(\s*(['\"])(.*?)\1", template))
    if not forms:
        return template
    dates = "".join(f"{{% if form == {form!r} %}}{TODAY.strftime(form)}{{% endif %}}" for form in forms)
    # The empty expression keeps Jinja from trimming the template's own first characters.
    return f"{{% macro strftime_now(form) %}}{dates}{{% endmacro %}}{{{{ '' }}}}{template}"
