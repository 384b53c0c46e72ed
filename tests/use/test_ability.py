"""What a run costs the model beside its tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raycl import SpecError, find_head
from raycl.analysis.ability import Ability
from raycl.report.history import print_abilities
from raycl.use.ability import abilities, perplexity, plain_texts
from tests.kit.cli import invoke
from tests.kit.trained import Trained

TEXTS = ["Entry: oak Entry: wolf", "Text: fine and Text: poor"]


def test_perplexity_by_hand() -> None:
    """Tokens 1, 2 | 0, 1, 1 at probabilities 1/2 | 1/4, 1/8: exp of (ln 2 + ln 4 + ln 8) / 3 = 4."""
    one = torch.log(torch.tensor([[0.25, 0.25, 0.5], [1.0, 1e-9, 1e-9]]))
    other = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [1.0, 1e-9, 1e-9]]))
    assert perplexity([one, other], [[1, 2], [0, 1, 1]]) == pytest.approx(4.0)


def test_the_base_model_and_every_stage(trained: Trained) -> None:
    """The base model's is that of transformers alone; training moves it; a state of stage 1 is that of the run's @1."""
    folder = trained("inc_lora")
    head = find_head(str(folder))
    found = list(abilities(head, TEXTS))
    assert [(one.stage, one.task) for one in found] == [(0, "the base model"), (1, "roget"), (2, "snippets")]
    model, tokenizer = (kind.from_pretrained(head.spec.model.name) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert found[0].perplexity == pytest.approx(alone(model, tokenizer, TEXTS), rel=1e-4)
    assert len({one.perplexity for one in found}) == 3
    assert list(abilities(find_head(f"{folder}@1"), TEXTS)) == found[:2]


def alone(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Perplexity by transformers' own loss."""
    total = count = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return math.exp(total / count)


def test_what_a_run_cuts_its_tasks_at_cuts_no_text(trained: Trained) -> None:
    """A text of more tokens than the run's longest prompt is read whole, and so is an instruction."""
    head = find_head(str(trained("inc_lora")))
    model, tokenizer = (kind.from_pretrained(head.spec.model.name) for kind in (AutoModelForCausalLM, AutoTokenizer))
    text = "Text: " + "fine and poor " * 12
    assert head.spec.data.max_source_tokens < len(tokenizer(text).input_ids) < 256
    assert next(abilities(head, [text])).perplexity == pytest.approx(alone(model, tokenizer, [text]), rel=1e-4)


@pytest.mark.parametrize("method", ["per_task", "route_lora", "gain_lora", "mtl", "prog_prompt"])
def test_methods_that_answer_in_other_ways(method: str, trained: Trained) -> None:
    """Told whose inputs come, routed, gated, joint; soft prompts give no plain text a probability."""
    found = list(abilities(find_head(str(trained(method))), TEXTS))
    assert [one.stage for one in found] == ([0, 1] if method == "mtl" else [0, 1, 2])
    assert all((one.perplexity is None) is (method == "prog_prompt") for one in found)
    assert all(0 <= one.instructions <= 100 for one in found)


def test_an_encoder_decoder_only_follows_instructions(trained: Trained) -> None:
    """It gives no plain text a probability."""
    assert {one.perplexity for one in abilities(find_head(str(trained("route_lora/t5"))), TEXTS)} == {None}


def test_texts_of_one_token_say_nothing(trained: Trained) -> None:
    """They are left out; where all are, that is refused."""
    head = find_head(str(trained("inc_lora")))
    assert len(AutoTokenizer.from_pretrained(head.spec.model.name)("").input_ids) == 1
    assert next(abilities(head, ["", *TEXTS])) == next(abilities(head, TEXTS))
    with pytest.raises(SpecError, match="none of them has two tokens"):
        next(abilities(head, [""]))


def test_the_texts_that_come_along() -> None:
    """Summaries of films, the same every time."""
    texts = plain_texts()
    assert len(texts) == len(set(texts)) >= 20 and texts == plain_texts()


def test_the_command_shows_a_table_or_json(trained: Trained, tmp_path: Path) -> None:
    """A line each for the base model and the stages."""
    folder = str(trained("inc_lora"))
    file = tmp_path / "plain.txt"
    file.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    shown = invoke("probe", [folder, "--file", str(file)])
    assert shown.code == 0, shown.output
    assert shown.output.splitlines()[1].split()[-4:-2] == ["1.000", "x"]
    said = invoke("probe", [folder, "--file", str(file), "--json"])
    rows = [json.loads(line) for line in said.output.splitlines() if line.startswith("{")]
    assert rows == [vars(one) for one in abilities(find_head(folder), TEXTS)]


def test_a_table_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexities over the base model's, and dashes where there are none."""
    print_abilities([Ability(0, "the base model", 20.0, 50.0), Ability(1, "a", 25.0, 43.75)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["1", "a", "25.00", "1.250", "x", "44", "%"]
    print_abilities([Ability(0, "the base model", None, 50.0)])
    assert capsys.readouterr().out.splitlines()[1].split()[-4:] == ["-", "-", "50", "%"]
