"""The run spec: every setting of a sequence, validated, with units and ranges.

One pydantic model is the source of the command line, the YAML file, the stage key, the MLflow params and the error
messages. Nothing heavy is imported here. The hyper-parameters of a method live in the method's own file; they reach
`RunSpec.method` through a look-up passed as validation context (`parse`), so that this module knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from raycl.errors import SpecError, is_name, name_rule, one_message, problems, shown
from raycl.fields import InKeyUnlessDefault, Meaning, NotInKey, PerStage, Strict, at_stage, fields_at, per_stage_fields
from raycl.files import Json

PositiveInt = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=10)]
Weight = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
LONGEST_NAME = 100
"""Characters of a task's name."""
FIELDS_HINT = "Run `raycl fields` to list every field with its meaning and allowed values."


class MethodParams(Strict):
    """Base of every method's hyper-parameters.

    `at(stage)` is what enters the stage key. A subclass says in `inert` what has no effect at a stage, so that runs which
    differ only in that share the stage.
    """

    name: str = Field(description="name of the method, as `raycl methods` lists it, or package.module:Class")

    @final
    def at(self, stage: int, alone: bool = False) -> Json:
        """The hyper-parameters that determine stage `stage` (1-based), with lists reduced to that stage's value.

        Of a stage that stands `alone`, those that determine a first stage. As everywhere, a field that is marked
        `InKeyUnlessDefault` is left out at its default, which older keys stand for.
        """
        per_stage, inert = self.per_stage_fields(), self.inert(1 if alone else stage)
        acting = self.model_dump(mode="json") | self.in_force()
        return {
            name: at_stage(value, stage) if name in per_stage else value
            for name, value in acting.items()
            if name not in inert and not self._left_out(name)
        }

    def inert(self, stage: int) -> frozenset[str]:
        """The names of the fields that have no effect on the state after stage `stage` (1-based), given its parent's."""
        return frozenset()

    def adapts_modules(self) -> bool:
        """Whether the method puts branches on modules of the base model, which `targets` chooses."""
        return "targets" in type(self).model_fields and "targets" not in self.inert(1)

    def trains_matrices(self) -> bool:
        """Whether Muon may move the matrices of the method's branches: it has some, and leaves their gradients whole."""
        return self.adapts_modules()

    def writes_weights(self) -> bool:
        """Whether branches end up in the base model's own weights when it is served: then none may sit on a tied weight."""
        return False

    def reads_weights(self) -> bool:
        """Whether the method computes with the numbers of the base model's weights: then these may not be quantised."""
        return False

    def branch_rank(self, d_in: int, d_out: int) -> int:
        """Rank of what a stage trains on a module of these widths; 0 where the method has no branch."""
        return int(getattr(self, "rank", 0))

    def soft_tokens(self, stages: int) -> int:
        """How many positions soft prompts take in an input, at most, in a sequence of `stages`."""
        return 0

    def in_force(self) -> Json:
        """The values that act where a field's own value stands for another one, as none for the paper's; by field."""
        return {}

    def serving(self) -> Json:
        """Hyper-parameters that act on the served model only: they are part of a score's key, and of no stage's."""
        return {}

    @classmethod
    def per_stage_fields(cls) -> frozenset[str]:
        """The names of the fields that accept one value per stage."""
        return frozenset()


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
    batches: Annotated[Literal["shuffled", "like_length"], InKeyUnlessDefault()] = Field(
        default="shuffled",
        exclude_if=lambda how: how == "shuffled",
        description="which examples share an optimizer step: any, as papers do, or those of like length, for less padding",
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


class RunSpec(Strict):
    """A sequence: one model, one order of tasks, one method, one seed."""

    order: Annotated[str, NotInKey("the tasks are in the keys")] = Field(
        description="id of a task order (std-1..3, long-4..6, sni-1..2, demo), or 1..6, or task,task,..."
    )
    tasks: Annotated[list[str], NotInKey("each task is in the keys of its stage and cells")] = Field(
        description="the tasks of the order, first to last", min_length=1
    )
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    method: SerializeAsAny[MethodParams]
    train: TrainSpec = TrainSpec()
    eval: EvalSpec = EvalSpec()
    seed: int = Field(default=0, ge=0, description="seed of initialisation, data order and dropout")
    workers: Annotated[int | None, NotInKey("the token mean does not depend on it")] = Field(
        default=None, ge=0, description="Ray Train workers; 0 = in this process; none = one per GPU, or one on CPU"
    )
    groups: Annotated[PositiveInt, NotInKey("who trains a stage is no part of it")] = Field(
        default=1,
        description="groups of workers that train at once, where stages depend on no other and the cluster has room",
    )
    imported: Annotated[dict[str, Sha256], NotInKey("the key of the stage that it makes holds it")] = Field(
        default_factory=dict,
        exclude_if=lambda keys: not keys,
        description="task: SHA-256 of an adapter trained elsewhere that is its stage; set by `raycl import-adapter`",
    )
    preset: Annotated[str, NotInKey("the fields that it set are in the keys")] = Field(
        default="none", description="the preset these values started from"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, MethodParams):
            return value
        look_up: Callable[[str], type[MethodParams]] | None = (info.context or {}).get("method_params")
        if look_up is None or not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError("expected a mapping with the method's name, e.g. {name: o_lora, rank: 8}")
        return look_up(value["name"]).model_validate(value, context=info.context)

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) != len(tasks):
            raise ValueError("a task may stand only once in a sequence")
        if odd := [task for task in tasks if not is_name(task, LONGEST_NAME)]:
            raise ValueError(f"{shown(odd[0])} is no name of a task; allowed: {name_rule(LONGEST_NAME)}")
        return tasks

    def per_stage_problems(self) -> list[str]:
        """One line for each per-stage list whose length is not the number of stages."""
        fields = [(f"train.{name}", getattr(self.train, name)) for name in per_stage_fields(TrainSpec)]
        fields += [(f"method.{name}", getattr(self.method, name)) for name in sorted(self.method.per_stage_fields())]
        wanted = len(self.tasks)
        return [
            f"{name}: a list of {len(value)} values; allowed: one value, or {wanted} values (one per stage)"
            for name, value in fields
            if isinstance(value, (list, tuple)) and len(value) != wanted
        ]


def parse(values: Json, method_params: Callable[[str], type[MethodParams]]) -> RunSpec:
    """Validate a nested mapping into a `RunSpec`.

    `method_params` maps a method's name to its hyper-parameter model and raises ValueError for an unknown name.
    Raises SpecError that lists every problem at once.
    """
    try:
        spec = RunSpec.model_validate(values, context={"method_params": method_params})
    except ValidationError as error:
        lines = problems(error, known=lambda place: _fields_at(place, values, method_params))
        raise SpecError(one_message("the run spec", lines, FIELDS_HINT)) from None
    if uneven := spec.per_stage_problems():
        raise SpecError(one_message("the run spec", uneven, FIELDS_HINT))
    return spec


def _fields_at(place: Sequence[Any], values: Json, method_params: Callable[[str], type[MethodParams]]) -> Sequence[str]:
    """The fields that there are at a place of the run spec; below `method`, those of the method that `values` name."""
    above, rest = (place[0], place[1:]) if place else ("", [])
    if above != "method":
        return fields_at(RunSpec, place)
    try:
        return fields_at(method_params(values["method"]["name"]), rest)
    except (KeyError, TypeError, ValueError):
        return []
