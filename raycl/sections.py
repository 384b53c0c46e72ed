"""The sections of the run spec but the method's: the base model, the data, training, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from raycl.fields import InKeyUnlessDefault, Meaning, NotInKey, PerStage, PositiveInt, Strict, Weight
from raycl.files import Json

Rate = Annotated[float, Field(gt=0, le=10)]
Batches = Literal["shuffled", "like_length", "equal_tokens"]


class ModelSpec(Strict):
    """The base model."""

    name: Annotated[str, NotInKey("the fingerprint of the model's files is in the keys")] = Field(
        default="packaged",
        description="`packaged` (SmolLM2-135M-Instruct from the package index), a local folder, or a hub id",
    )
    revision: Annotated[str | None, NotInKey("the fingerprint of the model's files is in the keys")] = Field(
        default=None, description="commit, tag or branch of a hub model"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="bf16",
        description="base weights and matrix products; everything trainable stays in fp32; `auto` = bf16 where the CPU or "
        "GPU multiplies bf16 natively, else fp32, decided before any stage is named",
    )
    dropout: Annotated[float, InKeyUnlessDefault()] = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dropout inside the frozen base model while training; T5's published runs use 0.1",
    )
    quantization: Annotated[Literal["none", "8bit", "4bit"], InKeyUnlessDefault()] = Field(
        default="none",
        description="base weights in 8 bits, or 4 (NF4), by bitsandbytes on CUDA; for methods that leave them alone",
    )
    attention: Annotated[Literal["auto", "sdpa", "flash_attention_2", "eager"], InKeyUnlessDefault()] = Field(
        default="auto", description="how attention is computed; auto = transformers' choice for the model"
    )
    gradient_checkpointing: Annotated[bool, InKeyUnlessDefault()] = Field(
        default=False,
        description="compute activations a second time for the gradients: less memory, more time, the same but for rounding",
    )


EXAMPLES = "the fingerprint of the rendered examples is in the keys"


class DataSpec(Strict):
    """Where the tasks come from and how much of them is used."""

    source: Annotated[str, NotInKey(EXAMPLES)] = Field(
        default="hub",
        description="where published tasks are: `demo`, `hub`, or a folder in the O-LoRA, the GainLoRA or the JSONL layout",
    )
    stream: Annotated[str | None, NotInKey(EXAMPLES)] = Field(
        default=None,
        description="YAML file of a task stream of your own; its tasks and orders come before the built-in ones",
    )
    allow_code: Annotated[bool, NotInKey("the source of each function that a task is scored by is in the keys")] = (
        Field(default=False, description="let a stream name Python functions as metrics")
    )
    train_examples: Annotated[PositiveInt | None, NotInKey(EXAMPLES)] = Field(
        default=None, description="examples per task drawn from train; none = all"
    )
    test_examples: Annotated[PositiveInt | None, NotInKey(EXAMPLES)] = Field(
        default=None, description="examples per task drawn from test; none = all"
    )
    test_split: Annotated[Literal["test", "validation"], NotInKey(EXAMPLES)] = Field(
        default="test",
        description="what scores are made on: the test split, or train rows that training does not use (to choose settings)",
    )
    seed: Annotated[int, NotInKey(EXAMPLES)] = Field(
        default=42, ge=0, description="seed of the draw, apart from the run's seed"
    )
    reveal_task: Annotated[bool, NotInKey(EXAMPLES)] = Field(
        default=False,
        description="put `Task:` and `Dataset:` lines into the prompt, as O-LoRA's scripts do (leaks the task)",
    )
    max_source_tokens: PositiveInt = Field(
        default=512,
        description="prompt length in tokens; of a longer prompt the end of the text is cut, never the instruction",
    )
    max_target_tokens: PositiveInt = Field(
        default=50, description="answer length in tokens, for training and generation"
    )

    @field_validator("stream")
    @classmethod
    def _wherever(cls, value: str | None) -> str | None:
        """The path as it holds from any folder: a spec that was written, such as a sweep's best, is read from others."""
        return None if value is None else str(Path(value).expanduser().resolve())


class TrainSpec(Strict):
    """Optimisation of one stage. Fields marked per stage take one value, or a list with one value per stage."""

    lr: Annotated[Rate | list[Rate], PerStage()] = Field(default=5e-4, description="learning rate; per stage")
    epochs: Annotated[PositiveInt | list[PositiveInt], PerStage()] = Field(
        default=1, description="passes over the training set; per stage"
    )
    batch_size: PositiveInt = Field(default=8, description="global batch: examples per optimizer step over all workers")
    micro_batch_size: Annotated[PositiveInt | None, NotInKey("the token mean does not depend on it")] = Field(
        default=None, description="examples per worker and forward pass; none = batch_size / workers (no accumulation)"
    )
    batches: Annotated[Batches, InKeyUnlessDefault()] = Field(
        default="shuffled",
        exclude_if=lambda how: how == "shuffled",
        description="which examples share an optimizer step: any, as papers do; those of like length, for less padding; or "
        "of these as many as make about equal tokens (batch_size on average), for steps of equal time and memory",
    )
    schedule: Annotated[Literal["constant", "linear", "cosine"], Meaning(2, except_for="constant")] = Field(
        default="constant", description="learning-rate schedule"
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the steps with linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    optimizer: Annotated[Literal["adamw", "muon"], InKeyUnlessDefault()] = Field(
        default="adamw",
        exclude_if=lambda name: name == "adamw",
        description="`muon` moves the matrices of LoRA branches by orthogonalised updates, and all else by AdamW; whole "
        "matrices only, so at train.zero_stage=0",
    )
    muon_scale: Annotated[Literal["match_rms_adamw", "original"], InKeyUnlessDefault()] = Field(
        default="match_rms_adamw",
        exclude_if=lambda scale: scale == "match_rms_adamw",
        description="size of Muon's steps by a matrix's shape: about AdamW's at the same rate, or Muon's own, whose rates "
        "for LoRA are 3e-3 to 3e-2",
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient clipping by global norm; 0 = none")
    compile: Annotated[bool, InKeyUnlessDefault()] = Field(
        default=False,
        exclude_if=lambda compiles: not compiles,
        description="compile the model's layers while a stage trains: worth a minute or more of compiling where stages are "
        "long; the same but for rounding",
    )
    loss: Annotated[Literal["cross_entropy", "eaft"], InKeyUnlessDefault()] = Field(
        default="cross_entropy",
        exclude_if=lambda loss: loss == "cross_entropy",
        description="`eaft` weighs each answer token's cross-entropy by the entropy of the model's own prediction, 0 to 1: "
        "what it is sure of and the data contradict pulls less (EAFT, arXiv 2601.02151)",
    )
    loss_top_k: Annotated[int, InKeyUnlessDefault()] = Field(
        default=20,
        ge=2,
        exclude_if=lambda count: count == 20,
        description="likeliest tokens among which `loss: eaft` takes the entropy (EAFT: 20)",
    )
    base_kl: Annotated[Weight, InKeyUnlessDefault()] = Field(
        default=0.0,
        exclude_if=lambda weight: weight == 0,
        description="weight of KL(base model || model) over all tokens but the answer's, at every answer token; one more "
        "forward pass; 0 = none (TMKL, arXiv 2605.29498)",
    )
    holdout: float = Field(default=0.0, ge=0, le=0.5, description="share of train held out for `keep: best`")
    keep: Literal["last", "best"] = Field(
        default="last",
        description="which epoch's weights end the stage; `best` = lowest loss on the held-out part of train",
    )
    zero_stage: Annotated[Literal[0, 1, 2, 3], NotInKey("says where numbers lie, not what they are")] = Field(
        default=0, description="DeepSpeed ZeRO stage"
    )
    engine: Annotated[Literal["auto", "deepspeed", "torch"], NotInKey("both take the same steps")] = Field(
        default="auto",
        description="what takes the steps: `deepspeed`, or plain `torch`; auto = torch for one process at ZeRO stage 0",
    )
    checkpoint_every: Annotated[int, NotInKey("a stage that was killed goes on bit for bit")] = Field(
        default=0, ge=0, description="optimizer steps between mid-stage checkpoints; 0 = none"
    )
    log_every: Annotated[PositiveInt, NotInKey("only observes")] = Field(
        default=5, description="optimizer steps between log lines"
    )
    drift_rows: Annotated[int, NotInKey("only observes")] = Field(
        default=0,
        ge=0,
        exclude_if=lambda rows: rows == 0,
        description="rows of a task's training set on which, after its stage, KL(model || base model) is measured; 0 = none",
    )
    patience: Annotated[int, NotInKey("a run that was ended goes on bit for bit")] = Field(
        default=1200,
        ge=0,
        exclude_if=lambda seconds: seconds == 1200,
        description="seconds without any progress (a micro-batch, a batch of answers, an exchange between workers) after "
        "which a worker is taken to stand still and is ended; 0 = never",
    )
    health: Annotated[Literal["fail", "warn", "continue"], NotInKey("only observes")] = Field(
        default="warn",
        exclude_if=lambda policy: policy == "warn",
        description="what follows a sign that a stage went wrong (docs/reliability.md): `fail` = the run ends, `warn` = "
        "it is said and recorded, `continue` = it is recorded; numbers that are none always end a run",
    )

    def keyed(self, stage: int) -> Json:
        """As everywhere; where nothing is held out the best epoch is the last one."""
        values = super().keyed(stage)
        return values | {"keep": "last"} if self.holdout == 0 else values

    def without_effect(self) -> frozenset[str]:
        """A held-out share counts only if it selects something, Muon's scale only for Muon, the entropy's tokens only if it
        weighs."""
        acts = {"holdout": self.keep == "best" and self.holdout > 0, "muon_scale": self.optimizer == "muon"}
        acts["loss_top_k"] = self.loss == "eaft"
        return frozenset(name for name, act in acts.items() if not act)


class EvalSpec(Strict):
    """Scoring of every task seen so far after each stage, by greedy generation."""

    batch_size: Annotated[PositiveInt, NotInKey("answers do not depend on it, but for bf16's rounding")] = Field(
        default=32, description="prompts per generation batch and worker"
    )
    batch_tokens: Annotated[PositiveInt | None, NotInKey("answers do not depend on it, but for rounding")] = Field(
        default=None,
        exclude_if=lambda tokens: tokens is None,
        description="padded prompt tokens per generation batch and worker, in the place of a number of prompts; a longer "
        "prompt stands alone. none = batch_size prompts",
    )
    forward: Annotated[bool, NotInKey("says which cells there are, not what is in them")] = Field(
        default=False,
        description="also score each next task before its stage and, at the end, the untrained model; needed for FWT",
    )
    workers: Annotated[int, NotInKey("who scores is no part of it")] = Field(
        default=0,
        ge=0,
        exclude_if=lambda workers: workers == 0,
        description="Ray workers of their own that score each stage while the next ones train; 0 = those that train do",
    )
