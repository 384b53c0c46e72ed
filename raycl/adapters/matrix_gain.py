"""A branch that several stages train in turn, merged after each by the gain that their inputs ask for.

With A fixed, z = A x, C_i = E_i z z^T over the inputs of stage i, and B_i what stage i had trained B to, the

    B = argmin sum_i E_i |(B - B_i) z|^2

is a running mean with a matrix for its weight: after each stage, from B before it, B' as trained from there, and S, the sum
of the earlier C,

    B <- B + (B' - B) C (S + C + eps I)^-1,    S <- S + C,    eps = 1e-6 tr(S + C) / r

Equal C make it the plain mean. It does not depend on the basis that A is written in, but for eps. What it does to a z that
neither stage has seen, where few tokens fill few directions (short answers in a decoder), is decided by eps alone.
Specification: raycl's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-6
"""eps, as a share of the mean eigenvalue."""


def merged(before: Tensor, trained: Tensor, own: Tensor, earlier: Tensor) -> Tensor:
    """B (d_out, r) after a stage, from B before it and as trained, its own C and the earlier stages' S (r, r); in fp64."""
    both = own.double() + earlier.double()
    both = both + RIDGE * both.trace() / len(both) * torch.eye(len(both), dtype=both.dtype, device=both.device)
    step = (trained - before).double() @ own.double()
    return before.double() + torch.linalg.solve(both, step, left=False)
