"""Chat templates: what stands around a message, and that training, generation and lengths agree on it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from raycl.errors import DataError
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from raycl.train.chat import around, message_end, why_not
from raycl.train.generation import Decoder
from raycl.train.workers import Workers

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{{ end }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
).replace("{{ end }}", "{{ eos_token }}")


@pytest.fixture
def chatty(tiny: Any) -> Any:
    """A tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_what_stands_around_a_message(chatty: Any) -> None:
    before, after = around(chatty, (("system", "t1w1"),))
    start = chatty.bos_token or ""
    assert before == f"{start}[system]t1w1{chatty.eos_token}[user]"
    assert after == f"{chatty.eos_token}[assistant]"
    assert message_end(chatty) == chatty.eos_token_id


def test_a_template_that_writes_the_date_writes_the_same_every_day(chatty: Any) -> None:
    """Llama 3's does so: the stages of yesterday must be those of today, and what is served like what was trained."""
    plain = around(chatty, ())
    chatty.chat_template = "{{ strftime_now('%d %b %Y') }}{{ strftime_now(\"%Y-%m-%d\") }} " + TEMPLATE
    around.cache_clear()
    assert around(chatty, ()) == (f"26 Jul 20242024-07-26 {plain[0]}", plain[1])


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_training_reads_what_the_template_writes(chatty: Any, family: str) -> None:
    """Token by token, the answer with its end included; too long a text is cut within the message."""
    example = Example("1", "t1w1 ", "t1w2 t1w3 t1w4", "", ("good",), chat=(("system", "t1w5"),))
    (one,) = Encoder(chatty, False, 64, 8).encode([example])
    turns = [("system", "t1w5"), ("user", "t1w1 t1w2 t1w3 t1w4"), ("assistant", "good")]
    messages = [{"role": role, "content": text} for role, text in turns]
    whole = chatty(chatty.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
    assert [*one.prompt, *one.answer] == whole
    (cut,) = Encoder(chatty, False, len(one.prompt) - 1, 8).encode([example])
    kept = [token for place, token in enumerate(one.prompt) if place != (one.body or (0, 0))[1] - 1]
    assert list(cut.prompt) == kept


def test_the_limit_of_an_answer_is_the_examples_own(tiny: Any) -> None:
    example = Example("1", "", "t1w1", "", ("t1w1 t1w2 t1w3",), tokens=2)
    encoder = Encoder(tiny.tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    assert len(encoder.encode([example])[0].answer) == 2
    assert len(encoder.encode([replace(example, tokens=None)])[0].answer) == 4
    assert encoder.generated(Task("t", "t", "rouge_l", None, (), (example,), {})) == 2
    assert encoder.encode([replace(example, weight=0.5)])[0].weight == 0.5


def test_a_chat_ends_at_the_end_of_its_message(tiny: Any) -> None:
    """Where that is another token than the end of texts, both end generation; the message's end is trained."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", "<turn>")
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    encoder = Encoder(tokenizer, tiny.backbone.encoder_decoder, 64, 8)
    assert encoder.ends(chat=True) == [tokenizer.eos_token_id, turn]
    assert encoder.ends(chat=False) == [tokenizer.eos_token_id]
    assert encoder.encode([Example("1", "", "t1w1", "", ("good",), chat=())])[0].answer[-1] == turn


def test_a_tokenizer_that_writes_no_chats_says_why(tiny: Any, chatty: Any) -> None:
    assert "no chat template" in str(why_not(tiny.tokenizer, ()))
    first = Example("t/train/1", "", "t1w1", "", ("good",), chat=())
    begun = replace(first, id="t/train/2", chat=(("assistant", "hello"),))
    assert why_not(chatty, [first, begun]) is None
    strict = copy.deepcopy(chatty)
    strict.chat_template = "{% if messages[0].role != 'user' %}{{ raise_exception('who?') }}{% endif %}" + TEMPLATE
    assert why_not(strict, [first]) is None
    assert "example t/train/2: " in str(why_not(strict, [first, begun]))
    assert "messages assistant, user (who?)" in str(why_not(strict, [first, begun]))
    cats, roles = copy.deepcopy(chatty), copy.deepcopy(chatty)
    cats.chat_template = "{{ raise_exception('only cats') }}"
    assert "refuses the messages user (only cats)" in str(why_not(cats, ()))
    roles.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(DataError, match="does not write a message"):
        around(roles, ())


def test_chats_are_answered_alike_in_batches_and_alone(tiny: Any, chatty: Any) -> None:
    rows = tuple(Example(str(i), "", f"t1w{i} t1w1"[: 4 + 5 * (i % 2)], "", ("good",), chat=()) for i in range(1, 5))
    task = Task("t", "t", "exact_match", ("good", "very bad"), rows, rows, {})
    model = replace(tiny, tokenizer=chatty)
    encoder = Encoder(chatty, tiny.backbone.encoder_decoder, 64, 8)
    found = [Decoder(model, None, encoder, size, Workers()).score(task).predictions for size in (4, 1)]
    assert found[0] == found[1]
