"""What lies beside the numbers of an export: the card, whose program runs, and the router's page."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from raycl import find_head
from raycl.models.load import load_model
from raycl.tasks.task import Example
from raycl.train.batches import Encoder
from raycl.use.export import export
from raycl.use.forms import ExportChange
from tests.kit.trained import NOT_EXACT, ORDER, Trained

CODE = """
import json, os, sys
from pathlib import Path
for folder, code in json.loads(Path(sys.argv[1]).read_text()):
    os.chdir(folder)
    sys.modules.pop("route", None)
    exec(compile(code, folder, "exec"), {})
assert not [name for name in sys.modules if name.split(".")[0] == "raycl"]
"""
CARDS = (
    "inc_lora",
    "seq_ft",
    "route_lora/hidden",
    "route_lora/t5",
    "per_task",
    "prog_prompt",
    "gain_lora",
    "inc_lora/t5",
)


def test_every_export_has_a_card_whose_code_runs(trained: Trained, tmp_path: Path) -> None:
    """The front matter is what the hub reads; the program answers in a process without raycl."""
    from huggingface_hub import ModelCard

    programs = []
    for run in CARDS:
        head, to = find_head(str(trained(run))), tmp_path / run.replace("/", "-")
        done = export(head, to, change=ExportChange("mean") if run in NOT_EXACT else None)
        card = ModelCard.load(to / "README.md")
        assert card.data.library_name == ("transformers" if done.form == "model" else "peft")
        assert {"continual-learning", "raycl", head.spec.method.name} <= set(card.data.tags)
        assert card.data.license is None and card.data.base_model is None  # the model is a folder, not known to the hub
        for key in head.stages:
            assert f"`{key}`" in card.text
        assert head.model_fingerprint in card.text
        assert (card.text.count("Yes: in fp32") + card.text.count("Yes, one input")) == done.exact
        assert re.search(r"AP \d+\.\d, FT -?\d+\.\d\.", card.text) and "| 2 snippets |" in card.text
        assert "| roget | 16 | 6 | demo |" in card.text
        assert ("--max-lora-rank 8" in card.text) == (done.rank is not None and done.form != "model")
        (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
        programs.append((str(to), code))
    (tmp_path / "programs.json").write_text(json.dumps(programs))
    (tmp_path / "run.py").write_text(CODE)
    command = [sys.executable, "-P", "run.py", "programs.json"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=540)


def test_a_family_shares_its_adapter(trained: Trained, tmp_path: Path) -> None:
    """The newest part's branch lies under both names, and the rule says so."""
    head = find_head(str(trained("route_lora/families")))
    export(head, tmp_path / "out")
    one, other = (tmp_path / "out" / "adapters" / task / "adapter_model.safetensors" for task in ORDER)
    assert one.read_bytes() == other.read_bytes()
    assert set(json.loads((tmp_path / "out" / "router.json").read_text())["adapter_of"].values()) == {"snippets"}


TEXTS = ("a film", "", "a long story of a cat and a dog, and of what they saw. " * 5, " led by  spaces", "Option: cat")


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_page_reads_prompts_as_raycl_does(family: str, trained: Trained, tmp_path: Path) -> None:
    """Ids, and which of them are pooled: whole and cut prompts, with and without a head and a tail, in a chat and not."""
    run = "route_lora/hidden" if family == "llama" else "route_lora/t5"
    head = find_head(str(trained(run)))
    export(head, tmp_path / "out")
    found = importlib.util.spec_from_file_location("page", tmp_path / "out" / "route.py")
    assert found is not None and found.loader is not None
    page = importlib.util.module_from_spec(found)
    found.loader.exec_module(page)
    loaded = load_model(head.spec.model, "cpu")
    router = page.Router(tmp_path / "out", None, loaded.tokenizer)
    router.rule["pooled"] = "text"
    cuts = set()
    for most, head_text, tail in product((8, 24, 500), ("", "Say what: \n"), ("", "\nAnswer:")):
        router.rule["max_tokens"] = most
        encoder = Encoder(loaded.tokenizer, loaded.backbone.encoder_decoder, most, 8)
        for text in TEXTS:
            if not head_text + text + tail:
                continue
            encoded = encoder.encode([Example("", head_text, text, tail, ("",))])
            inputs = encoder.collate(encoded, "cpu", answers=False)
            ids, start, end = router.tokens(text, head_text, tail, False)
            assert ids == list(encoded[0].prompt)
            assert list(range(start, end)) == inputs.text_mask[0].nonzero()[:, 0].tolist()
            cuts.add(len(ids) == most)
    assert cuts == {True, False}
    said = "<s>user: "
    assert (
        router.tokens("a film", said, "", True)[0]
        == loaded.tokenizer(said + "a film", add_special_tokens=False).input_ids
    )
