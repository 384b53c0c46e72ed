"""Shared by all tests: a home of its own, fixed threads, two tiny random models in folders, toy tasks, stages in memory."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Both must stand before torch or raycl is imported anywhere.
os.environ["RAYCL_HOME"] = tempfile.mkdtemp(prefix="raycl-tests-")
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from raycl.methods.common.base import Method
    from raycl.models import LoadedModel
    from raycl.state.stage_state import StagePart, StageState
    from raycl.tasks.task import Task

FAMILIES = ("llama", "t5")
TASKS, WORDS = 5, 12
LABELS = ("good", "very bad")
WIDTH = 48
"""Width d of the tiny models; their q and v are not square."""


@pytest.fixture(scope="session", autouse=True)
def raycl_home() -> Iterator[Path]:
    """The home of this test session, removed at its end."""
    yield Path(os.environ["RAYCL_HOME"])
    shutil.rmtree(os.environ["RAYCL_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny models, by family, as `save_pretrained` writes them."""
    folders = {name: tmp_path_factory.mktemp(f"tiny-{name}") for name in FAMILIES}
    for name, folder in folders.items():
        save_tiny(name, folder)
    return folders


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """llama (decoder-only) and t5 (encoder-decoder)."""
    return request.param


@pytest.fixture(scope="session")
def tiny_folder(tiny_folders: dict[str, Path], family: str) -> Path:
    """The folder of a tiny model."""
    return tiny_folders[family]


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    """A tiny random model in fp32; whoever puts adapters on takes them off again."""
    return load_tiny(tiny_folder, "fp32")


@pytest.fixture(scope="session")
def tiny_bf16(tiny_folder: Path) -> LoadedModel:
    """The same model with base weights in bf16."""
    return load_tiny(tiny_folder, "bf16")


@pytest.fixture(scope="session")
def toy_task() -> Callable[..., Task]:
    """The maker of toy tasks."""
    return make_toy_task


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., StageResult]:
    """The runner of one stage in this process."""
    return run_stage_in_memory


@pytest.fixture(scope="session")
def run_sequence() -> Callable[..., list[StageResult]]:
    """The runner of a sequence of stages in this process."""
    return run_sequence_in_memory


def load_tiny(folder: Path, precision: str) -> LoadedModel:
    """A model folder through raycl's own loader."""
    from raycl.models import load_model
    from raycl.spec import ModelSpec

    return load_model(ModelSpec(name=str(folder), precision=precision), "cpu")


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the toy tasks' words; Llama's starts with <s>, T5's ends with </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(" ".join(LABELS).split())]
    for task in range(1, TASKS + 1):
        words += [f"t{task}{kind}" for kind in ("head", "tail", *(f"w{i}" for i in range(WORDS)))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, special = ("<s> $A", ("<s>", 1)) if family == "llama" else ("$A </s>", ("</s>", 2))
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[special])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def save_tiny(family: str, folder: Path) -> None:
    """Write a random tiny model and its tokenizer: two layers (T5: two and two), no dropout, fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer(family)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(7)
    if family == "llama":
        attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
        shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **shape, **attention, bos_token_id=1))
    else:
        shape = {"d_model": WIDTH, "d_kv": 6, "num_heads": 4, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2}
        model = T5ForConditionalGeneration(T5Config(**sizes, **shape, dropout_rate=0.0, decoder_start_token_id=0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_toy_task(number: int, distinct: int = 4, repeats: int = 4, words: int = 4, spread: int = 0) -> Task:
    """Task `number` (1..5): `distinct` prompts of `words` words that no other task uses, each `repeats` times.

    The first word decides the answer. With `spread`, a prompt is longer by up to that many words.
    """
    from raycl.tasks.task import Example, Task

    draw = random.Random(number)
    rows = []
    for index in range(distinct):
        length = words - 1 + draw.randint(0, spread)
        first = index % WORDS
        rest = [f"t{number}w{draw.randrange(WORDS)}" for _ in range(length)]
        body = " ".join([f"t{number}w{first}", *rest])
        rows.append((f"t{number}head ", body, f" t{number}tail", (LABELS[index % 2],)))
    examples = tuple(Example(f"{i}", *row) for i, row in enumerate(rows * repeats))
    return Task(f"toy{number}", "toy", "exact_match", LABELS, examples, examples[:distinct], {})


@dataclass
class StageResult:
    """One stage run in memory."""

    part: StagePart
    state: StageState
    """The state after the stage."""
    method: Method
    log: list[dict[str, Any]]
    events: list[dict[str, Any]]
    trainable: list[str]
    """Names of what the optimizer got, in the stage module."""
    before: dict[str, Any]
    """Copies of all parameters and buffers of the stage module just before the first step."""
    after: dict[str, Any]
    """The same right after the last step."""
    probes: list[Any] = field(default_factory=list)
    """What `probe` returned just before the first step and right after the last one."""


def run_stage_in_memory(
    model: LoadedModel,
    method: dict[str, Any] | Method,
    tasks: Sequence[Task],
    state: StageState | None = None,
    *,
    seed: int = 0,
    probe: Callable[[Any, Any], Any] | None = None,
    **train: Any,
) -> StageResult:
    """Run the stage that follows `state` on tasks[state.stage], without Ray and without a store.

    `method` is the method's parameters, or a ready method object; `train` overrides fields of TrainSpec.
    `probe(stage module, encoder)` runs in eval mode, just before and right after the training.
    """
    import torch

    from raycl.methods.common.base import StageInfo
    from raycl.methods.registry import build, method_params
    from raycl.spec import EvalSpec, ModelSpec, RunSpec, TrainSpec
    from raycl.state.stage_state import StageState
    from raycl.train.batches import Encoder
    from raycl.train.stage import StageRun
    from raycl.train.workers import Workers

    class WatchedRun(StageRun):
        def _train(self, module, train, held_out):
            self.probes = []
            self.trainable_names = sorted(name for name, p in module.named_parameters() if p.requires_grad)
            self._look(module)
            self.before = copies(module)
            super()._train(module, train, held_out)
            self.after = copies(module)
            self._look(module)

        def _look(self, module):
            if probe is not None:
                with torch.no_grad():
                    self.probes.append(probe(module.eval(), self.encoder))

    state = state or StageState()
    stage = state.stage + 1
    task = tasks[state.stage]
    if isinstance(method, dict):
        params = method_params(method["name"]).model_validate(method)
        method = build(params, StageInfo(stage, len(tasks), task.name, seed))
    settings = {"lr": 1e-2, "epochs": 4, "batch_size": 8, "log_every": 1} | train
    bf16 = model.backbone.model.dtype == torch.bfloat16
    spec = RunSpec(
        order="toy",
        tasks=[one.name for one in tasks],
        model=ModelSpec(name=model.name, precision="bf16" if bf16 else "fp32"),
        method=method.params,
        train=TrainSpec(**settings),
        eval=EvalSpec(batch_size=8),
        seed=seed,
        workers=0,
    )
    encoder = Encoder(model.tokenizer, model.backbone.encoder_decoder, 64, 8)
    events: list[dict[str, Any]] = []
    run = WatchedRun(model, method, state, task, spec, encoder, Workers(), events.append)
    part = run.run()
    return StageResult(
        part, state.append(part), method, run.log, events, run.trainable_names, run.before, run.after, run.probes
    )


def run_sequence_in_memory(
    model: LoadedModel, method: dict[str, Any], tasks: Sequence[Task], **settings: Any
) -> list[StageResult]:
    """Run all stages of a sequence; `settings` as for `run_stage_in_memory`."""
    results: list[StageResult] = []
    for _ in tasks:
        state = results[-1].state if results else None
        results.append(run_stage_in_memory(model, method, tasks, state, **settings))
    return results


def copies(module: Any) -> dict[str, Any]:
    """Copies of all parameters and buffers of a module, by name."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}
