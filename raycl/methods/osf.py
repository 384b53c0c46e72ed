"""OSF (OSFT, arXiv 2504.07097): train a weight only in its directions of small singular values; the large ones stay.

At stage t, in an adapted module with the weight so far W_(t-1) = W + sum_{i<t} s_i B_i A_i (d_out, d_in) and
m = min(d_in, d_out) singular values:

    W_(t-1) = U_h diag(S_h) V_h + U_l diag(S_l) V_l

with the k leading directions in U_h (d_out, k), V_h (k, d_in) and the other q = m - k in U_l, S_l, V_l; `protect` is k, or
its share of m. The decomposition is made anew at every stage, so that what a stage has learned is protected like the rest,
as far as its singular values are large. The update D_t = W_t - W_(t-1) obeys, to round-off and by construction,

    U_h^T D_t = 0,    D_t V_h^T = 0 .

`form=full`, the paper's: the low directions themselves train, from where they are,

    D_t = (U_l + (I - U_h U_h^T) T_U) diag(S_l + T_S) (V_l + T_V (I - V_h^T V_h)) - U_l diag(S_l) V_l,    T = 0 at the start.

`form=lora`: a LoRA branch that is restricted in the same way, s = alpha / r, A~ Kaiming-uniform and B~ = 0 at the start,

    D_t = s (I - U_h U_h^T) B~ A~ (I - V_h^T V_h) .

For a square W both move within the same set, of which `lora` takes updates of rank r. `full` trains q (d_in + d_out + 1)
numbers a module, at k = m / 2 and a square W as many as W has, beside twice as many that stay, and adds a branch of rank q
to the state; `lora` costs what LoRA costs, and the kept directions. Hence `lora` is the default, and `full` is what the
paper's settings choose. A stage begins with one singular value decomposition per module, in fp64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from raycl.adapters.backbone import Backbone
from raycl.adapters.branches import LoraShape
from raycl.adapters.low_directions import GuardedPair, LowPair, directions, weight_with
from raycl.files import Json
from raycl.methods.common.base import About
from raycl.methods.common.lora import LoraMethod, LoraParams
from raycl.methods.common.published import is_t5, t5_dropout
from raycl.state.stage_state import Branch, StageState

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(gt=0, strict=True)]


class OsfParams(LoraParams):
    """OSF's hyper-parameters."""

    name: Literal["osf"] = Field(default="osf", description="only directions of small singular values train")
    form: Literal["lora", "full"] = Field(
        default="lora",
        description="what trains: a LoRA branch off the protected directions, or the low directions themselves (the paper), "
        "which takes the memory of training the adapted weights",
    )
    protect: Count | Share = Field(
        default=0.5,
        description="leading singular directions of each adapted weight that stay: their share of min(d_in, d_out), rounded "
        "down and at least 1, or their number",
    )

    def inert(self, stage: int) -> frozenset[str]:
        """The low directions themselves have no rank of their own."""
        return super().inert(stage) | ({"rank", "alpha"} if self.form == "full" else set())

    def reads_weights(self) -> bool:
        """They are decomposed."""
        return True

    def branch_rank(self, d_in: int, d_out: int) -> int:
        """r, or all that is not protected."""
        return self.rank if self.form == "lora" else min(d_in, d_out) - self.kept(d_in, d_out)

    def kept(self, d_in: int, d_out: int) -> int:
        """k of a module. Raises ValueError where nothing would be left to train."""
        size = min(d_in, d_out)
        if isinstance(self.protect, float):
            return min(max(1, int(self.protect * size)), size - 1)
        if self.protect >= size:
            raise ValueError(
                f"method.protect: {self.protect} of a module of {d_in} inputs and {d_out} outputs leaves nothing to train; "
                f"allowed: at most {size - 1}, or a share between 0 and 1"
            )
        return self.protect

    @property
    def shape(self) -> LoraShape:
        """The branch's; the low directions are a branch without a scale, whatever their number."""
        shape = super().shape
        return shape if self.form == "lora" else LoraShape(1, 1.0, shape.dropout, shape.targets)


class Osf(LoraMethod[OsfParams]):
    """IncLoRA whose branches keep off the leading directions of the weight so far."""

    Params = OsfParams
    about = About(
        title="updates kept off the leading singular directions of each weight so far",
        paper="OSF (OSFT), arXiv 2504.07097; `form=lora` is raycl's own",
        trains="A and B of a new branch (`form=lora`), or the low singular directions and values (`form=full`)",
        growth="r (d_in + d_out) per adapted module and task; with `form=full` as many for r = the module's low directions",
        frozen="the backbone, all earlier branches, and the leading singular directions of what they sum up to",
        projected="the trained factors themselves, at every use, off the leading directions",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module, as they act: A V_h^T = 0, U_h^T B = 0; with "
            "`form=full` r is the largest number of low directions of any module, and alpha = r",
        },
        mergeable=True,
        differences=(
            "The paper and PEFT's `osf` tuner project gradients; AdamW then moves the weight out of what is protected (15 % "
            "of the change of U_l after 400 steps on a small layer). Here the constraint is part of the parametrisation, "
            "and weight decay pulls to where the stage began.",
            "The paper takes off what lies in both the left and the right protected subspace, PEFT what lies in either, "
            "as is done here.",
            "The paper adapts k to each layer by how much its output resembles its input; here it is a share or a number, "
            "as in PEFT.",
            "The paper adapts all linear layers: `method.targets=all-linear`.",
            "The paper merges and keeps one weight; here what each stage added stays a branch, so that a state says so.",
            "After a stage the singular values are sorted anew: a direction that was protected need not stay so.",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """The paper's for T5-Large and Llama-2-7B, as third accounts have them."""
        decay, rate = (0.0, 5e-5) if is_t5(family) else (0.01, 1e-5)
        return {
            "model": {"dropout": t5_dropout(family)},
            "method": {"form": "full", "protect": 0.5, "dropout": 0.0},
            "train": {"lr": rate, "epochs": 1, "batch_size": 8, "weight_decay": decay},
        }

    def install(self, backbone: Backbone, state: StageState) -> None:
        """Put guards in the place of the new branch's factors, against the weight as it is now."""
        super().install(backbone, state)
        self.pairs: dict[str, GuardedPair | LowPair] = {}
        self.energies: list[float] = []
        for path, layer in self.branches.layers.items():
            weight = weight_with(layer, path, state.branches)
            found = directions(weight, self.params.kept(weight.shape[1], weight.shape[0]))
            full = self.params.form == "full"
            pair = LowPair(found) if full else GuardedPair(layer.down.data, layer.up.data, found)
            layer.put(pair.down, pair.up)
            self.pairs[path] = pair
            self.energies.append(found.energy)

    def branch(self) -> Branch:
        """The factors as they act, copied out; those of the low directions filled up with zeros to one rank."""
        factors = {path: pair.factors() for path, pair in self.pairs.items()}
        rank = max(len(a) for a, _ in factors.values())
        alpha = self.params.alpha if self.params.form == "lora" else float(rank)
        a = {path: _copy(pad(a, (0, 0, 0, rank - len(a)))) for path, (a, _) in factors.items()}
        b = {path: _copy(pad(b, (0, rank - b.shape[1]))) for path, (_, b) in factors.items()}
        return Branch(rank, alpha, a, b)

    def running(self) -> Mapping[str, Tensor]:
        """The directions that what trains belongs to: made on another machine they may have other signs."""
        return {
            f"{path}/{side}/{name}": value.data
            for path, pair in self.pairs.items()
            for side, module in (("in", pair.down), ("out", pair.up))
            for name, value in module.named_parameters()
            if not value.requires_grad
        }

    def measures(self) -> dict[str, float]:
        """Mean share of the weights' squared norm that is protected."""
        return {"protected_energy": sum(self.energies) / len(self.energies)}


def _copy(weight: Tensor) -> Tensor:
    return weight.to("cpu", copy=True).contiguous()
