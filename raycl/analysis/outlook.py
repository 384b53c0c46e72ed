"""What a sequence would do and what it would take: counts, and estimates that say what they are made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from raycl.analysis.cost import Phase, Rates, Work, exchange, total

ACTIVATION_BYTES = 34
"""Bytes of activations that a transformer's layer keeps for each token and unit of width in 16 bits, attention maps left out
(Korthikanti et al. 2022, arXiv 2205.05198, equation 2). Frozen layers keep less: this is an allowance."""
CHECKPOINT_BYTES = 2
"""The same with gradient checkpointing: the layer's input."""
FP32 = 4
ANSWER_BYTES = 150
"""Of one answer with its references in a row's predictions, about: id, texts, and a route where there is one."""


@dataclass(frozen=True)
class StageOutlook:
    """One stage to be."""

    stage: int
    task: str
    key: str
    stored: bool
    rows: int
    """Training rows, without those that are held out or replayed."""
    steps: int
    """Optimizer steps over all epochs."""
    tokens: int | None = None
    """Tokens of prompts and answers over all epochs; none for a stage that is stored."""
    run: int | None = None
    """The same as the model runs them, padding included: what `tokens/s` counts."""
    sampled: bool = False
    """Whether tokens are counted on some of the rows."""
    train: Work = field(default_factory=Work)
    """Of all workers together, as everywhere; none for a stage that is stored."""
    passes: Work = field(default_factory=Work)


@dataclass(frozen=True)
class RowOutlook:
    """One row of the accuracy matrix: what is still to answer after a stage."""

    row: int
    """The stage; 0 = the untrained model."""
    examples: int
    """Test examples of its cells that are not stored; a score that fills several cells counts once, in its first row."""
    work: Work


@dataclass(frozen=True)
class Speed:
    """How fast stored stages of the same model were trained on the same device by as many workers."""

    tokens_per_s: float
    """Tokens run a second, padding included, over all workers."""
    overhead: float
    """All work of these stages over their training alone, at least 1: data passes, building adapters."""
    stages: int
    """How many stages that is taken from."""
    same_method: bool
    """Whether they are of the method that is planned; methods differ in speed."""


@dataclass(frozen=True)
class Scoring:
    """The cells of the accuracy matrix."""

    cells: int
    stored: int
    examples: int
    """Test examples to answer for the cells that are not stored; a score that fills several cells counts once."""
    seconds_per_example: float | None = None
    """Of this sequence's stored cells; none where there are none."""


@dataclass(frozen=True)
class Memory:
    """An estimate of what one worker holds while it trains, in bytes."""

    weights: int
    """The base model in its precision."""
    trained: int
    """What trains, in fp32."""
    gradients: int
    moments: int
    """What the optimizer keeps of gradients: AdamW two numbers for each, Muon one."""
    activations: int
    """An allowance for the longest micro-batch."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.gradients + self.moments + self.activations


@dataclass(frozen=True)
class Outlook:
    """What `raycl run` would do with the same flags."""

    stages: tuple[StageOutlook, ...]
    scoring: Scoring
    memory: Memory
    parameters: int
    """Weights of the base model."""
    speed: Speed | None = None
    """None where the store holds no stage of this model on this device."""
    notes: tuple[str, ...] = ()
    """What is not counted."""
    rows: tuple[RowOutlook, ...] = ()
    rates: Rates | None = None
    """What is assumed where nothing was measured; none = nothing is assumed, and nothing said of time."""
    workers: int = 1
    """Processes that share out every batch, pass and test set."""
    trained: int = 0
    """Weights that a stage trains, and stores."""

    @property
    def seconds(self) -> dict[int, dict[Phase, float | None]]:
        """Stage (0 = before the first) -> phase -> an estimate; none where nothing is known of the phase's speed."""
        stages = {stage.stage: stage for stage in self.stages}
        rows = {row.row: row for row in self.rows}
        return {
            number: {
                "train": self._train(stages[number]) if number in stages else 0.0,
                "passes": self._passes(stages[number]) if number in stages else 0.0,
                "score": self._score(rows[number]) if number in rows else 0.0,
            }
            for number in sorted({*stages, *rows})
        }

    def _train(self, stage: StageOutlook) -> float | None:
        """What was measured says how long all of it takes, and what is computed how that is spread over the stages."""
        if self.speed is not None:
            run = sum(one.run or 0 for one in self.stages) / self.speed.tokens_per_s
            share = stage.train.multiply_adds / (total(one.train for one in self.stages).multiply_adds or 1.0)
            return run * share
        if self.rates is None:
            return None
        steps = 0 if stage.stored else stage.steps
        return self.rates.seconds(stage.train, back=True) / self.workers + steps * exchange(self.trained, self.workers)

    def _passes(self, stage: StageOutlook) -> float | None:
        """Of stages that were measured all that is no training."""
        if self.speed is not None:
            return (self._train(stage) or 0.0) * (self.speed.overhead - 1)
        return None if self.rates is None else self.rates.seconds(stage.passes) / self.workers

    def _score(self, row: RowOutlook) -> float | None:
        if self.scoring.seconds_per_example is not None:
            return self.scoring.seconds_per_example * row.examples
        return None if self.rates is None else self.rates.seconds(row.work) / self.workers

    def phase_seconds(self, *phases: Phase) -> float | None:
        """An estimate for some phases of all stages; none where nothing is known of one of them."""
        parts = [one[phase] for one in self.seconds.values() for phase in phases]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    @property
    def training_seconds(self) -> float | None:
        """An estimate for the stages to run, data passes included; none where nothing is known of their speed."""
        return self.phase_seconds("train", "passes")

    @property
    def scoring_seconds(self) -> float | None:
        """An estimate for the cells to score; none where nothing is known of it."""
        return self.phase_seconds("score")

    @property
    def stored_bytes(self) -> int:
        """What the run adds to the store, at least: what trains in fp32, and the answers."""
        stages = sum(not stage.stored for stage in self.stages)
        return stages * FP32 * self.trained + ANSWER_BYTES * self.scoring.examples


@dataclass(frozen=True)
class Load:
    """What memory is estimated from."""

    parameters: int
    trained: int
    width: int
    layers: int
    vocabulary: int
    weight_bytes: float
    """Bytes of a base weight: 4, 2, or less where it is quantised."""
    moments: int
    """Numbers that the optimizer keeps for each that trains: AdamW two, Muon one."""
    activation_bytes: int
    """Bytes of an activation: 4 or 2."""
    tokens: int
    """Tokens of the largest micro-batch, padding included."""
    answers: int
    """Tokens of its answers, padded to the longest: what logits are computed for."""
    world: int
    zero_stage: int
    checkpointing: bool


def memory(load: Load) -> Memory:
    """What one worker holds.

        weights      P b / (W at ZeRO 3)
        trained      4 Q;    gradients 4 Q / (W from ZeRO 2);    moments 4 m Q / (W from ZeRO 1)
        activations  34 (2 with gradient checkpointing) tokens width layers b' / 2 + 8 answers vocabulary

    P base weights of b bytes, Q trained ones with m moments each, W workers, b' bytes of an activation; logits and their
    gradient in fp32.
    """
    share = [load.world if load.zero_stage >= stage else 1 for stage in range(4)]
    trained = FP32 * load.trained
    kept = CHECKPOINT_BYTES if load.checkpointing else ACTIVATION_BYTES
    layers = kept * load.tokens * load.width * load.layers * load.activation_bytes // 2
    return Memory(
        weights=int(load.parameters * load.weight_bytes) // share[3],
        trained=trained,
        gradients=trained // share[2],
        moments=load.moments * trained // share[1],
        activations=layers + 2 * FP32 * load.answers * load.vocabulary,
    )
