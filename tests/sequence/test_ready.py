"""The one check between loading and the first step: everything that keeps a run from working, in one message."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import SpecError
from raycl.methods.registry import method_params
from raycl.models.load import LoadedModel, load_model
from raycl.sequence.ready import require_ready
from raycl.spec import RunSpec, parse
from raycl.tasks.task import Example, Task
from raycl.train.batches import Encoder
from tests.kit.cli import invoke
from tests.kit.odd_models import edit, save_odd, without
from tests.kit.runs import MakeFlags

LABELS = ("good", "very bad")


def task(
    labels: tuple[str, ...] | None = LABELS, metric: Any = "exact_match", answer: str = "good", words: int = 3
) -> Task:
    """A task of one example."""
    rows = (Example("0", "Judge. ", " ".join(["film"] * words), "\nAnswer:", (answer,)),)
    return Task("toy", "toy", metric, labels, rows, rows, {})


def spec_of(folder: Path, *tasks: Task, method: dict[str, Any], data: dict[str, Any] | None = None) -> RunSpec:
    """The spec of a run over tasks."""
    values = {
        "order": "custom",
        "tasks": [one.name for one in tasks],
        "model": {"name": str(folder), "precision": "fp32"},
        "data": {"max_source_tokens": 48, "max_target_tokens": 12} | (data or {}),
        "method": method,
    }
    return parse(values, method_params)


def refusal(loaded: LoadedModel, spec: RunSpec, *tasks: Task) -> str:
    """What the check says of a loaded model; empty where it finds nothing."""
    limits = (spec.data.max_source_tokens, spec.data.max_target_tokens)
    try:
        require_ready(loaded, Encoder(loaded.tokenizer, loaded.backbone.encoder_decoder, *limits), spec, tasks)
    except SpecError as error:
        return str(error)
    return ""


def check(folder: Path, *tasks: Task, data: dict[str, Any] | None = None, **method: Any) -> str:
    """What the check says; empty where it finds nothing."""
    spec = spec_of(folder, *tasks, method={"name": "o_lora"} | method, data=data)
    return refusal(load_model(spec.model, "cpu"), spec, *tasks)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without fault, of 2048 positions."""
    return save_odd("llama", tmp_path_factory.mktemp("models") / "llama")


# --- modules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets", [None, ["q_proj"], ["lm_head"], ["down_proj", "v_proj"], ["layers.0.self_attn.q_proj"]]
)
def test_linear_modules_can_be_adapted(llama: Path, targets: list[str] | None) -> None:
    """By their last name or by more of their path."""
    assert not check(llama, task(), targets=targets)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["q_proj", "v_porj"], "'v_porj' names no module (nearest: v_proj)"),
        (["q_proj", "embed_tokens"], "embed_tokens is no linear module but of the type Embedding"),
        (["input_layernorm"], "is no linear module but of the type LlamaRMSNorm"),
        (["self_attn"], "is no linear module but of the type LlamaAttention"),
    ],
)
def test_other_targets_are_refused_with_those_that_fit(llama: Path, targets: list[str], words: str) -> None:
    """The message lists the model's linear modules."""
    said = check(llama, task(), targets=targets)
    assert words in said
    assert "k_proj, lm_head, o_proj" in said


def test_a_tied_head_carries_a_branch_unless_it_is_merged_into_the_weights(tmp_path: Path) -> None:
    """The branch is on the head alone; merged, it would change the embedding too."""
    folder = save_odd("gpt2", tmp_path / "gpt2")
    assert not check(folder, task(), targets=["lm_head"])
    assert not check(folder, task(), name="merging", targets=["lm_head"], refactor_rank=2)
    assert "shares its weight" in check(folder, task(), name="merging", targets=["lm_head"])


def test_a_module_that_no_pass_calls_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch on it would train nothing, without a word."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x))))
    assert "up_proj is not called in a forward pass" in check(llama, task(), targets=["up_proj"])


def test_an_expression_that_matches_nothing_is_refused(llama: Path) -> None:
    """Expressions are of whole paths, so a name alone matches none; what is no expression is refused with the spec."""
    assert "'re:q_proj' names no module" in check(llama, task(), targets="re:q_proj")
    with pytest.raises(SpecError, match=r"method\.targets.*'re:\(' is no regular expression"):
        check(llama, task(), targets=["q_proj", "re:("])


def test_a_family_without_a_default_is_asked_for_targets(tmp_path: Path) -> None:
    """With the modules that it has; a name, an expression and all linear ones are ways out."""
    folder = save_odd("mamba", tmp_path / "mamba")
    said = check(folder, task())
    assert "finds no attention, so no modules to adapt" in said
    assert "in_proj, lm_head, out_proj, x_proj" in said
    for targets in (["in_proj"], "re:.*mixer.(in|x)_proj"):
        assert not check(folder, task(), targets=targets)
    assert re.search("method.targets: .*'out_proj' is incompatible", check(folder, task(), targets="all-linear"))


def test_a_method_without_branches_is_not_asked_for_targets(llama: Path) -> None:
    """Neither where all weights train, nor for prompts."""
    for method in ({"name": "seq_ft"}, {"name": "l2p"}, {"name": "ewc", "trains": "full", "targets": ["nothing"]}):
        assert not check(llama, task(), **method)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "seq_ft"}, "seq_ft trains the base weights"),
        ({"name": "ewc", "trains": "full"}, "ewc trains the base weights"),
        ({"name": "merging"}, "merging merges into the base weights"),
        ({"name": "migu", "over": "seq_ft"}, "migu trains the base weights"),
        ({"name": "merging", "refactor_rank": 2}, ""),
        ({"name": "osf"}, "osf computes with the base weights"),
        ({"name": "ewc"}, ""),
        ({"name": "gain_lora"}, ""),
        ({"name": "l2p"}, ""),
        ({"name": "prog_prompt"}, ""),
        ({"name": "lfpt5"}, ""),
    ],
)
def test_quantised_weights_are_for_methods_that_leave_them_alone(
    llama: Path, method: dict[str, Any], words: str
) -> None:
    """Adapters and prompts stand beside them."""
    plain = spec_of(llama, task(), method=method)
    loaded = load_model(plain.model, "cpu")
    few = plain.model_copy(update={"model": plain.model.model_copy(update={"quantization": "4bit"})})
    for spec, expected in ((plain, ""), (few, words)):
        said = refusal(loaded, spec, task())
        assert expected in said and bool(said) == bool(expected)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "seq_ft"}, "train.base_kl: 0.5 holds the model to the base model, whose weights seq_ft trains"),
        ({"name": "replay", "trains": "full"}, "whose weights replay trains with these settings; set it to 0, or take"),
        ({"name": "replay"}, ""),
        ({"name": "merging"}, ""),
        ({"name": "l2p"}, ""),
    ],
)
def test_a_base_model_that_trains_is_nothing_to_compare_with(llama: Path, method: dict[str, Any], words: str) -> None:
    """Adapters and prompts can be left off; without the term nothing is compared."""
    plain = spec_of(llama, task(), method=method)
    loaded = load_model(plain.model, "cpu")
    held = plain.model_copy(update={"train": plain.train.model_copy(update={"base_kl": 0.5})})
    for spec, expected in ((plain, ""), (held, words)):
        said = refusal(loaded, spec, task())
        assert expected in said and bool(said) == bool(expected)


# --- answers --------------------------------------------------------------------------------------------------------------


def test_a_label_that_the_limit_cuts_is_named_with_what_it_needs(llama: Path) -> None:
    """At the number it names, the label fits."""
    labels = ("yes", "an answer of quite a few words")
    said = check(llama, task(labels, answer="yes"), data={"max_target_tokens": 4})
    assert "cuts 1 of the 2 labels of toy; the longest, 'an answer of quite a few words', takes" in said
    needed = int(said.partition("words', takes ")[2].split()[0])
    assert not check(llama, task(labels, answer="yes"), data={"max_target_tokens": needed})
    assert check(llama, task(labels, answer="yes"), data={"max_target_tokens": needed - 1})


def test_a_label_of_special_tokens_can_never_be_answered(llama: Path) -> None:
    """Decoding leaves nothing of it."""
    assert "label '</s>' can never be answered" in check(llama, task(("yes", "</s>"), answer="yes"))


def test_a_label_that_the_metric_does_not_see_can_never_be_answered(llama: Path) -> None:
    """ROUGE-L counts letters and digits of ASCII only."""
    assert "'+' can never be answered" in check(llama, task(("yes", "+"), "rouge_l", "yes"))
    assert not check(llama, task(("yes", "+"), "raw_match", "yes"))


def test_cut_free_text_is_a_warning_with_its_share(llama: Path) -> None:
    """Free text may be longer than what is scored."""
    with pytest.warns(UserWarning, match="toy: 100% of the training answers are longer than data.max_target_tokens=4"):
        assert not check(llama, task(None, "rouge_l", "a long and winding answer"), data={"max_target_tokens": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check(llama, task(None, "rouge_l", "a long and winding answer"), data={"max_target_tokens": 40})


# --- lengths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_inputs_must_fit_the_positions(tmp_path: Path, family: str) -> None:
    """The limits may be larger where no text of these tasks uses them."""
    size = {"n_positions": 40} if family == "gpt2" else {"max_position_embeddings": 40}
    folder = save_odd(family, tmp_path / family, **size)
    assert "the model has 40 positions" in check(folder, task(words=60))
    assert not check(folder, task(words=60), data={"max_source_tokens": 28})
    assert not check(folder, task(words=1))


def test_soft_prompts_take_positions_too(tmp_path: Path) -> None:
    """A prompt of 30 vectors leaves ten of 40 positions."""
    folder = save_odd("opt", tmp_path / "opt", max_position_embeddings=40)
    assert not check(folder, task(words=2), name="prog_prompt", length=2)
    assert "with 30 of the method's soft prompts" in check(folder, task(words=2), name="prog_prompt", length=30)


@pytest.mark.parametrize(("family", "read", "less"), [("opt", 54, 7), ("bart", 49, 5)])
def test_demonstrations_take_positions_too(tmp_path: Path, family: str, read: int, less: int) -> None:
    """A prompt of 22 tokens and an answer of at most 5, before the same again or, in an encoder, before the prompt, are more
    than 40. Of what is taken off a prompt both take off. Without its weight, and of a test example, nothing is shown."""
    folder = save_odd(family, tmp_path / family, max_position_embeddings=40)
    said = check(folder, task(words=12), name="self_distill")
    assert f"lets inputs of {read} tokens with the demonstrations that the method puts before them through" in said
    assert f"lower it by {less}" in said
    assert not check(folder, task(words=12), name="self_distill", weight=0)
    assert not check(folder, task(words=4), name="self_distill")
    assert not check(folder, replace(task(words=4), test=task(words=12).test), name="self_distill")


# --- as a whole -----------------------------------------------------------------------------------------------------------


def test_all_problems_are_in_one_message(llama: Path) -> None:
    """Targets and labels at once."""
    said = check(llama, task(("yes", "</s>"), answer="yes"), targets=["v_porj"])
    assert said.startswith("2 problems in the model")
    assert "v_porj" in said and "</s>" in said


def test_the_command_ends_before_the_first_step(tmp_path: Path, flags: MakeFlags) -> None:
    """Exit code 2, all in one message, nothing stored."""
    folder = save_odd("llama", tmp_path / "model")
    without(folder, "model.norm.weight")
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "config.json", eos_token_id=None)
    answer = invoke("run", [*flags(tmp_path / "store"), "--model", str(folder)])
    assert answer.code == 2
    assert "2 problems in the model" in answer.stderr
    assert "Nothing was trained." in answer.stderr
    assert not list((tmp_path / "store").rglob("manifest.json"))
