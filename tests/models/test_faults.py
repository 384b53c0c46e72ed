"""Models that load and cannot be worked with: each fault is found and named before anything is trained."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from raycl.errors import SpecError
from raycl.models.fingerprint import fingerprint
from raycl.models.load import LoadedModel, load_model
from raycl.models.places import read_files
from raycl.sections import ModelSpec
from tests.kit.odd_models import REFUSED, as_pickle, edit, save_odd, with_extra, without


def named(folder: Path, **fields: float) -> ModelSpec:
    """The spec of a model in fp32."""
    return ModelSpec.model_validate({"name": str(folder), "precision": "fp32", **fields})


def load(folder: Path, **fields: float) -> LoadedModel:
    """A model on the CPU."""
    return load_model(named(folder, **fields), "cpu")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny model without fault."""
    return save_odd("llama", tmp_path / "llama")


def no_end(folder: Path) -> None:
    """Neither tokenizer nor configuration ends an answer."""
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "config.json", eos_token_id=None)


def added_token(folder: Path) -> None:
    """A padding token was added and the embedding left as it was."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (
        lambda f: without(f, "model.layers.1.mlp.up_proj.weight"),
        r"no weights for model\.layers\.1\.mlp\.up_proj",
    ),
    "of another shape": (lambda f: edit(f / "config.json", intermediate_size=40), r"no weights for .*mlp"),
    "extra": (lambda f: with_extra(f, "score.weight"), r"no place for \(score\.weight\)"),
    "no end token": (no_end, "no end token.*eos_token_id"),
    "token without a row": (added_token, r"no row for \(\[PAD\]\).*resize_token_embeddings"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(llama: Path, fault: str) -> None:
    """Each alone."""
    damage, words = FAULTS[fault]
    damage(llama)
    (found,) = load(llama).faults
    assert re.search(words, found)


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_padding_reaches_is_refused(family: str, tmp_path: Path) -> None:
    """Its answers would depend on what else is in their batch."""
    (found,) = load(save_odd(family, tmp_path)).faults
    assert re.search(rf"padding changes .*models of the type {family}", found)


def test_all_faults_are_named_at_once(llama: Path) -> None:
    """Two at a time."""
    without(llama, "model.norm.weight")
    no_end(llama)
    assert len(load(llama).faults) == 2


def test_a_sound_model_has_no_fault_and_tied_weights_are_not_missing(tmp_path: Path, llama: Path) -> None:
    """GPT-2's head is its embedding, so its file has no head."""
    assert not load(llama).faults
    assert not load(save_odd("gpt2", tmp_path / "gpt2")).faults


def test_a_decoder_needs_its_first_token(tmp_path: Path) -> None:
    """An encoder-decoder says with which token answers begin."""
    folder = save_odd("bart", tmp_path / "bart")
    edit(folder / "config.json", decoder_start_token_id=None)
    (folder / "generation_config.json").unlink()
    (found,) = load(folder).faults
    assert "decoder_start_token_id" in found


def test_the_configuration_lends_its_end_token(llama: Path) -> None:
    """A tokenizer without one ends and pads with the token the model's configuration names, alone or first of a list."""
    edit(llama / "tokenizer_config.json", eos_token=None, pad_token=None)
    for said in (2, [2, 3]):
        edit(llama / "config.json", eos_token_id=said)
        loaded = load(llama)
        assert not loaded.faults
        assert loaded.tokenizer.eos_token_id == 2
        assert isinstance(loaded.tokenizer.pad_token_id, int)


# --- files ----------------------------------------------------------------------------------------------------------------


def test_weights_in_a_pickle_are_refused_with_the_way_to_convert_them(llama: Path) -> None:
    """Before anything is named after the model: another model's results could be taken for it."""
    as_pickle(llama)
    with pytest.raises(SpecError, match=r"pickle.*save_pretrained\(FOLDER\)"):
        fingerprint(named(llama))
    with pytest.raises(SpecError, match="pickle"):
        load(llama)


def test_a_folder_with_an_adapter_is_refused(llama: Path) -> None:
    """transformers would load it along with the model."""
    (llama / "adapter_config.json").write_text("{}")
    with pytest.raises(SpecError, match="merge_and_unload"):
        fingerprint(named(llama))


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template.jinja", "additional_chat_templates/tools.jinja", "generation_config.json"),
        *("merges.txt", "vocab.txt", "dict.txt", "any.model", "any.spm", "any.codes", "any.tokenizer", "any.tiktoken"),
    ],
)
def test_what_loading_may_read_counts(llama: Path, name: str) -> None:
    """Chat templates, generation settings and a tokenizer's files are part of a model, wherever in its folder."""
    before = fingerprint(named(llama))
    (llama / name).parent.mkdir(exist_ok=True)
    (llama / name).write_text("{}")
    assert fingerprint(named(llama)) != before


def test_every_vocabulary_file_that_transformers_knows_counts(llama: Path) -> None:
    """Whatever a tokenizer's class calls its files."""
    import transformers

    files = set()
    for name in dir(transformers):
        with contextlib.suppress(ImportError):  # a tokenizer whose library is not installed
            if name.endswith("Tokenizer"):
                files |= set(getattr(getattr(transformers, name), "vocab_files_names", {}).values())
    assert len(files) > 10
    for name in files:
        (llama / name).touch()
    assert files <= {file.name for file in read_files(llama, "x")}


# --- dropout --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["opt", "bart", "gpt2", "phi3", "gpt_neox", "bloom"])
def test_dropout_is_what_the_setting_says_whatever_its_name(tmp_path: Path, family: str) -> None:
    """Two training passes are the same at 0 and differ at 0.3."""
    import torch

    folder = save_odd(family, tmp_path / family)
    for share in (0.0, 0.3):
        loaded = load(folder, dropout=share)
        assert not loaded.faults
        assert loaded.record["dropout"] and set(loaded.record["dropout"].values()) <= {share, 0.0}
        model = loaded.backbone.model.train()
        ids = torch.arange(4, 12)[None]
        first, second = (model(input_ids=ids).logits for _ in range(2))
        assert torch.equal(first, second) == (share == 0)


def test_layers_are_never_dropped(tmp_path: Path) -> None:
    """A configuration that drops whole layers loses that."""
    folder = save_odd("opt", tmp_path / "opt", layerdrop=0.5)
    assert load(folder, dropout=0.2).record["dropout"]["layerdrop"] == 0.0


def test_randomness_that_no_setting_reaches_is_a_fault(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided by what the model does, not by names."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain = LlamaMLP.forward

    def noisy(self: LlamaMLP, x):
        import torch

        return torch.nn.functional.dropout(plain(self, x), 0.5, self.training)

    monkeypatch.setattr(LlamaMLP, "forward", noisy)
    (found,) = load(llama).faults
    assert "model.dropout: 0" in found


def test_a_model_that_tokens_alone_do_not_run_is_a_fault(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the short pass, in words, not as a traceback of the model's."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def failing(self: LlamaMLP, x):
        raise RuntimeError("images are missing")

    monkeypatch.setattr(LlamaMLP, "forward", failing)
    (found,) = load(llama).faults
    assert "images are missing" in found and "token ids" in found


def test_a_dropout_without_effect_is_a_fault(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that does nothing is not taken in silence."""
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", without_dropout())
    (found,) = load(llama, dropout=0.3).faults
    assert "0.3 has no effect" in found


def without_dropout():
    """Attention that ignores its dropout."""
    import torch

    plain = torch.nn.functional.scaled_dot_product_attention
    return lambda *args, **kwargs: plain(*args, **{**kwargs, "dropout_p": 0.0})


def test_loading_leaves_the_generators_alone(llama: Path) -> None:
    """The passes that decide draw nothing from the process's generator."""
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    load(llama)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- regions --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bart", "mbart"])
def test_which_tokens_a_module_reads_is_found_by_a_pass(tmp_path: Path, family: str) -> None:
    """Keys and values of cross-attention read the source, all else in the decoder and the head the answer."""
    regions = load(save_odd(family, tmp_path / family)).backbone.regions
    assert regions["model.encoder.layers.1.fc1"] == "source"
    assert regions["model.decoder.layers.0.encoder_attn.k_proj"] == "source"
    assert regions["model.decoder.layers.0.encoder_attn.v_proj"] == "source"
    assert regions["model.decoder.layers.0.encoder_attn.q_proj"] == "target"
    assert regions["model.decoder.layers.0.self_attn.v_proj"] == "target"
    assert regions["lm_head"] == "target"
