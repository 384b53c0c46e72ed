"""InfLoRA (arXiv 2404.00228): fix the new down-projection before training, outside the earlier tasks' input subspace.

For each adapted layer let M be an orthonormal basis of what earlier tasks' inputs span there, and C the second moment of
the new task's inputs. Then A_t (r, d_in) = the leading r eigenvectors of (I - M M^T) C (I - M M^T), divided by sqrt(3)
(which gives its rows the expected norm of a Kaiming-uniform draw). A_t is frozen, only B_t trains: inputs in span(M)
do not feel the new branch at all. After training, M grows by the new inputs (GPM). Forward and loss as IncLoRA.

`design: random_projected` is the InfLoRA baseline inside the GainLoRA repository: Kaiming A projected off M, rows
normalised to 1/sqrt(3), no data pass before training, plain Kaiming at stage 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.adapters.backbone import Backbone, Inputs
from raycl.adapters.branches import Branches, kaiming
from raycl.adapters.moments import mean_name
from raycl.adapters.observe import LayerInputs
from raycl.adapters.subspace import grow, joined, leading_outside, residual
from raycl.fields import InKeyUnlessDefault, PositiveInt
from raycl.files import Json
from raycl.methods.common.base import About, Moments, Observes, When
from raycl.methods.common.lora import LoraMethod, LoraParams, MixParams
from raycl.methods.common.published import gpm_settings
from raycl.state.stage_state import StagePart, StageState

ONE_SIDED = (
    "Directions outside M are eigenvectors of (I - M M^T) C (I - M M^T), the second moment of what lies outside M; the "
    "released code takes left singular vectors, and the energies, of the one-sided (I - M M^T) C, which weighs a direction "
    "outside M also by how it goes along with those inside. No setting restores it."
)
"""A difference from the released code that all its subspaces share."""
BASIS = "layer_basis/"
"""Prefix of a part's tensors: the basis columns (d_in, j) that the stage added, by layer input."""


class SubspaceParams(LoraParams):
    """Hyper-parameters of the designed down-projection."""

    design: Literal["svd", "random_projected"] = Field(
        default="svd", description="how A_t is made: from the new task's inputs (the paper), or a projected random draw"
    )
    epsilon: float = Field(
        default=0.95, gt=0, le=1, description="energy of the layer inputs that M must capture; rises to 1"
    )
    energy_power: Literal[1, 2] = Field(
        default=1, description="power of C's eigenvalues in that energy; 2 = the released code, with epsilon 0.995"
    )
    horizon: PositiveInt = Field(default=15, description="N in epsilon_t = epsilon + (1 - epsilon) (t - 1) / N")
    layer_chunks: PositiveInt = Field(default=1, description="diagonal blocks of C per layer; must divide d_in")
    tokens_per_dim: Annotated[PositiveInt | None, InKeyUnlessDefault()] = Field(
        default=None,
        description="tokens that a data pass reads for each dimension of the widest layer input, in rows drawn at random; "
        "none = all rows. 8 were enough for A_t within 0.5 % of its energy, and for bases within 1 % of epsilon",
    )


class InfLoraParams(SubspaceParams, MixParams):
    """InfLoRA's hyper-parameters."""

    name: Literal["inf_lora"] = Field(
        default="inf_lora", description="down-projections outside the earlier input subspaces"
    )


def threshold(epsilon: float, stage: int, horizon: int) -> float:
    """epsilon_t = epsilon + (1 - epsilon) (t - 1) / N, with t - 1 clamped to N."""
    return epsilon + (1 - epsilon) * min(stage - 1, horizon) / horizon


class InfLora(LoraMethod[SubspaceParams]):
    """Design A_t, train B_t, grow the layer bases."""

    Params = InfLoraParams
    version = 2
    about = About(
        title="down-projections fixed outside the earlier tasks' input subspaces",
        paper="InfLoRA, arXiv 2404.00228",
        trains="B of a new branch",
        growth="r (d_in + d_out) per adapted module and task, and layer bases: at most d_in^2 per distinct layer input",
        frozen="the backbone, all earlier branches, and A of the new one",
        projected="A of the new branch, before training, off the earlier tasks' layer inputs",
        state={
            "branch": "A (r, d_in) and B (d_out, r) of every adapted module",
            "layer_basis": "(d_in, j): orthonormal columns the stage added to the basis of a layer's inputs",
        },
        mergeable=True,
        differences=(
            "Inputs are taken at each adapted module itself; the released code uses the decoder's states for the values of "
            "cross-attention, which read the encoder, so its guarantee fails there.",
            "Padding never enters a second moment; the released passes average over it.",
            "The InfLoRA row of GainLoRA's tables comes from a random projected A: `method.design=random_projected`.",
            "The energy that a basis must capture counts eigenvalues of C (the GPM paper); the released code squares "
            "them, and asks for 0.995 of that: `method.energy_power=2`, `method.epsilon=0.995`.",
            ONE_SIDED,
            "Always the basis of what earlier inputs span, never its complement (DualGPM stores the smaller of both).",
        ),
    )

    @classmethod
    def settings(cls, family: str, order: str) -> Json:
        """GainLoRA's language runs (arXiv 2505.15424)."""
        return gpm_settings(family, order)

    @classmethod
    def passes(cls, params: SubspaceParams) -> Mapping[When, Observes]:
        """Both need the layers' inputs; a random design needs none before."""
        before: tuple[When, ...] = () if params.design == "random_projected" else ("before",)
        return dict.fromkeys((*before, "after"), "layers")

    @property
    def pass_tokens(self) -> int | None:
        """So many for each dimension of the widest input."""
        each = self.params.tokens_per_dim
        return None if each is None else each * max(self.inputs.widths.values())

    def install(self, backbone: Backbone, state: StageState) -> None:
        """A new branch whose B trains; A is designed by `initialise`, or here for a random design."""
        self.branches = Branches(backbone, self.params.shape, state.branches)
        self.branches.start(None, None, self.info.generator("branch"), train="B")
        self.inputs = LayerInputs(self.branches, self.params.layer_chunks)
        self.bases = {path: stored_basis(state, BASIS + path, width) for path, width in self.inputs.widths.items()}
        if self.params.design == "random_projected" and state.stage > 0:
            self.branches.set_a({path: self._projected(path) for path in self.branches.layers})

    def collect(self, when: When) -> Moments | None:
        """Second moments of every distinct layer input, named by its layer."""
        if when == "before" and self.params.design == "random_projected":
            return None
        moments: Moments = {}
        self.inputs.watch(moments, means=when == "before")
        return moments

    def serve(self, backbone: Backbone, state: StageState) -> None:
        """All branches, and nothing watched."""
        super().serve(backbone, state)
        self.inputs = LayerInputs(self.branches, self.params.layer_chunks)

    def condition(self, inputs: Inputs) -> None:
        """Remember the batch's masks for the layer hooks."""
        self.inputs.inputs = inputs

    def initialise(self, moments: Moments) -> None:
        """Set A_t to the designed rows."""
        owners = self.inputs.owners()
        designed = {owner: self._designed(owner, moments) for owner in sorted(set(owners.values()))}
        self.branches.set_a({path: designed[owner] for path, owner in owners.items()})
        self.inputs.release()

    def consolidate(self, moments: Moments) -> StagePart:
        """The branch, and the columns each layer basis gained. Layers that share an input share its columns."""
        owners = self.inputs.owners()
        self.inputs.release()
        epsilon = threshold(self.params.epsilon, self.info.stage, self.params.horizon)
        added = {}
        for owner in sorted(set(owners.values())):
            moment = moments[owner].value
            columns = grow(self.bases[owner], moment, epsilon, self.params.energy_power, self.params.layer_chunks)
            added[BASIS + owner] = columns.float()
        shared = {path: owner for path, owner in owners.items() if path != owner}
        return StagePart(self.info.task, self.branch(), added, {**self.facts(), "shared_inputs": shared})

    def measures(self) -> dict[str, float]:
        """Mean share of each layer's input space that earlier tasks fill."""
        shares = [basis.shape[1] / basis.shape[0] for basis in self.bases.values()]
        return {"layer_basis_share": sum(shares) / len(shares)}

    def _designed(self, path: str, moments: Moments) -> Tensor:
        """A_t for one layer input, (r, d_in): leading eigenvectors per block, joined, / sqrt(3 chunks)."""
        chunks, rank = self.params.layer_chunks, self.params.rank
        raw = moments[path].value
        rest = residual(raw, self.bases[path])
        if rest.trace() < 1e-6 * raw.trace():
            warnings.warn(
                f"{path}: earlier tasks fill the input space; the new branch can hardly learn there", stacklevel=2
            )
        vectors = leading_outside(raw, self.bases[path], chunks)
        rows = joined(vectors[:, :, :rank], moments[mean_name(path)].value).T
        return (rows / math.sqrt(3 * chunks)).float()

    def _projected(self, path: str) -> Tensor:
        """Kaiming A projected off M, rows scaled to norm 1/sqrt(3)."""
        basis = self.bases[path]
        rows = kaiming((self.params.rank, basis.shape[0]), self.info.generator(path)).double()
        rows = rows - (rows @ basis) @ basis.T
        return (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12) / math.sqrt(3)).float()


def stored_basis(state: StageState, name: str, width: int) -> Tensor:
    """The basis (width, k) put together from the columns every stage added, fp64. A layer reads its input's owner."""
    columns = [_columns(part, name) for part in state.parts]
    present = [c.double() for c in columns if c is not None]
    return torch.cat(present, dim=1) if present else torch.zeros(width, 0, dtype=torch.float64)


def _columns(part: StagePart, name: str) -> Tensor | None:
    """The columns a part added for `name`, or for the layer whose input it shares."""
    shared: dict[str, Any] = part.facts.get("shared_inputs", {})
    path = name.removeprefix(BASIS)
    return part.tensors.get(BASIS + shared[path] if path in shared else name)
