"""ProgPrompt (Progressive Prompts, arXiv 2301.12314): one soft prompt per task, in front of those of all earlier tasks.

Input of stage t, in embeddings: [P_t, P_(t-1), ..., P_1, Emb(x)], with P_i (m, d), m vectors of the model's width d. Only
P_t is trained; P_1..P_(t-1) and the backbone are frozen. Loss: the cross-entropy of task t.

With `mlp`, P_t = Z + MLP(Z), MLP(z) = W_2 tanh(W_1 z + b_1) + b_2, W_1 (h, d), W_2 (d, h); Z and the MLP are trained, and
the part holds their result P_t alone. P_t (Z) starts as m token embeddings drawn from the vocabulary.

Task i is always scored with [P_i, ..., P_1, Emb(x)]: it needs the task id at test and forgets nothing by construction.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.adapters.backbone import Backbone
from raycl.adapters.soft_prompts import SoftPrompt, vocabulary_vectors
from raycl.fields import PositiveInt
from raycl.files import Json
from raycl.methods.common.base import About, InPeft, Method, Moments
from raycl.methods.common.published import is_t5
from raycl.spec import MethodParams
from raycl.state.stage_state import StagePart, StageState

VALUE = "prompt/value"
"""The part's tensor: P_t, (m, d), fp32."""


class ProgPromptParams(MethodParams):
    """ProgPrompt's hyper-parameters."""

    name: Literal["prog_prompt"] = Field(
        default="prog_prompt", description="a soft prompt per task, in front of the earlier ones"
    )
    length: PositiveInt = Field(default=10, description="vectors m of a task's prompt (released code: 10)")
    mlp: bool = Field(default=False, description="train the prompt through a residual MLP that is folded in at the end")
    bottleneck: PositiveInt = Field(default=800, description="hidden width h of that MLP (released code: 800)")

    def soft_tokens(self, stages: int) -> int:
        """The prompts of all stages."""
        return self.length * stages

    def inert(self, stage: int) -> frozenset[str]:
        """Without the MLP its width has no effect."""
        return super().inert(stage) | (set() if self.mlp else {"bottleneck"})


class Progressive(nn.Module):
    """The prompts of a stage: the new one, which trains, and the earlier ones, newest first."""

    earlier: Tensor

    def __init__(self, value: Tensor, earlier: Tensor, mlp: nn.Module | None) -> None:
        super().__init__()
        self.value = nn.Parameter(value)
        self.mlp = mlp
        self.register_buffer("earlier", earlier)

    def current(self) -> Tensor:
        """P_t, (m, d), in fp32 whatever the autocast."""
        if self.mlp is None:
            return self.value
        with torch.autocast(self.value.device.type, enabled=False):
            return self.value + self.mlp(self.value)

    def forward(self) -> Tensor:
        """[P_t, ..., P_1], (t m, d)."""
        return torch.cat([self.current(), self.earlier])


class ProgPrompt(Method[ProgPromptParams]):
    """Train a new prompt in front of the frozen ones."""

    Params = ProgPromptParams
    needs_task_id = True
    about = About(
        title="a soft prompt per task, in front of the earlier ones; task id at test",
        paper="Progressive Prompts, arXiv 2301.12314",
        trains="the new prompt (`mlp=true`: and its residual MLP)",
        growth="m d numbers per task; inputs grow by m positions per task",
        frozen="the backbone and all earlier prompts",
        state={"prompt": "value (m, d): the task's prompt, the MLP folded in"},
        differences=(
            "Padding stays outside of prompt and text, so that neighbours in a batch do not matter; the release puts the "
            "prompt in front of the whole row, which is the same for T5's right padding.",
            "The release cuts prompt and text together at 512 tokens, so that later tasks see less text; here "
            "`data.max_source_tokens` counts the text alone.",
            "The release keeps the prompt with the best validation accuracy; here `train.keep=best` with `train.holdout` "
            "goes by the lowest loss on a held-out part of train.",
            "The release can give the MLP a learning rate of its own (by default it has none); here it has the prompt's.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The released T5 code. No source gives a rate for decoder-only models, whose embeddings are far smaller: 0.03."""
        train: Json = {"lr": 0.03, "epochs": 10, "batch_size": 8, "weight_decay": 1e-5}
        if not is_t5(family):
            return {"train": train}
        return {"model": {"dropout": 0.1}, "train": train | {"lr": 0.3, "holdout": 0.1, "keep": "best"}}

    @classmethod
    def in_peft(cls, params: ProgPromptParams) -> InPeft:
        """All prompts up to the task's own, as one."""
        return "prompt"

    def install(self, backbone: Backbone, state: StageState) -> None:
        """The earlier prompts and a new one."""
        value = vocabulary_vectors(backbone, self.params.length, self.info.generator("prompt"))
        mlp = None
        if self.params.mlp:
            mlp = residual_mlp(backbone.width, self.params.bottleneck, self.info.generator("mlp"))
        self._put(backbone, value, state, mlp)

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All prompts of the state."""
        *earlier, last = state.parts
        self._put(backbone, last.tensors[VALUE], StageState(tuple(earlier)), None)
        self.prompt.requires_grad_(False)

    def soft_prompt(self) -> SoftPrompt:
        """[P_t, ..., P_1] in front of every input."""
        return SoftPrompt(self.prompt()[None])

    def consolidate(self, moments: Moments) -> StagePart:
        """P_t, with the MLP folded in."""
        with torch.no_grad():
            value = self.prompt.current().to("cpu", copy=True)
        return StagePart(self.info.task, tensors={VALUE: value}, facts=self.facts())

    def remove(self) -> None:
        """The prompts never sat on the backbone."""

    def modules(self) -> dict[str, nn.Module]:
        """The prompts."""
        return {"prompt": self.prompt}

    def measures(self) -> dict[str, float]:
        """Mean length of the new prompt's vectors."""
        return {"prompt_norm": float(self.prompt.value.detach().norm(dim=1).mean())}

    def _put(self, backbone: Backbone, value: Tensor, state: StageState, mlp: nn.Module | None) -> None:
        """The new prompt's vectors in front of those of `state`."""
        old = [part.tensors[VALUE] for part in reversed(state.parts)]
        earlier = torch.cat(old) if old else value.new_zeros(0, backbone.width)
        self.prompt = Progressive(value.clone(), earlier, mlp).to(backbone.device)


def residual_mlp(width: int, hidden: int, generator: torch.Generator) -> nn.Module:
    """W_2 tanh(W_1 z + b_1) + b_2, every entry uniform within 1 / sqrt(fan-in), torch's default."""
    down, up = nn.Linear(width, hidden), nn.Linear(hidden, width)
    for layer in (down, up):
        bound = layer.in_features**-0.5
        for parameter in (layer.weight, layer.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return nn.Sequential(down, nn.Tanh(), up)
