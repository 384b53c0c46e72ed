"""Subspaces: orthonormal bases of what earlier tasks' inputs span (gradient projection memory, GPM).

A basis M is (d, k) with orthonormal columns; k = 0 means nothing is known yet. All decompositions run in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residual(moment: Tensor, basis: Tensor) -> Tensor:
    """Second moment of the features' part outside span(M): (I - M M^T) C (I - M M^T), symmetric (d, d)."""
    basis = basis.to(moment)
    half = moment - basis @ (basis.T @ moment)
    full = half - (half @ basis) @ basis.T
    return (full + full.T) / 2


def leading(moment: Tensor, chunks: int = 1) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, clipped at 0) and eigenvectors of a symmetric second moment, per diagonal block.

    Returns values (chunks, d/chunks) and vectors (chunks, d, d/chunks); a block's vectors are 0 outside the block.
    """
    width = moment.shape[0]
    block = width // chunks
    values, vectors = [], []
    for start in range(0, width, block):
        part = slice(start, start + block)
        eigenvalues, eigenvectors = torch.linalg.eigh(moment[part, part])
        placed = moment.new_zeros(width, block)
        placed[part] = _fix_sign(eigenvectors.flip(1))
        values.append(eigenvalues.flip(0).clamp(min=0))
        vectors.append(placed)
    return torch.stack(values), torch.stack(vectors)


def leading_outside(moment: Tensor, basis: Tensor, chunks: int = 1) -> Tensor:
    """Eigenvectors of the residual, per block as `leading` gives them, all orthogonal to M; columns without room are 0.

    Where the features leave nothing outside span(M), round-off would choose the vectors, inside span(M) as likely as not.
    Raising all eigenvalues outside span(M) by the same amount keeps the vectors and their order, and M's at the end.
    """
    basis = basis.to(moment)
    width = moment.shape[0]
    outside = torch.eye(width).to(moment) - basis @ basis.T
    _, vectors = leading(residual(moment, basis) + moment.trace() / width * outside, chunks)
    vectors = vectors - basis @ (basis.T @ vectors)
    norms = vectors.norm(dim=1, keepdim=True)
    return torch.where(norms > 0.5, vectors / norms, torch.zeros_like(vectors))


def joined(vectors: Tensor, mean: Tensor) -> Tensor:
    """Vectors (d, j) over all coordinates, from those of the blocks (chunks, d, j): sums over the blocks, of norm
    sqrt(chunks), each block's vector turned to where the features lie on average, `mean` (d,).

    A block's eigenvector has an arbitrary sign, and the block-diagonal moment says nothing of how blocks go together: summed
    as they come, the blocks' parts of one feature cancel as often as not. Turned, every block adds to what the mean feature
    gives. Where a vector is orthogonal to the mean (1e-4 of the mean's norm) it keeps the sign that `leading` fixed.
    """
    mean = mean.to(vectors)
    along = torch.einsum("cdj,d->cj", vectors, mean)
    signs = torch.where(along < -1e-4 * mean.norm(), -1.0, 1.0).to(vectors)
    return (vectors * signs[:, None]).sum(dim=0)


def grow(basis: Tensor, moment: Tensor, threshold: float, power: int = 1, chunks: int = 1) -> Tensor:
    """New columns (d, j) for `basis` (d, k) so that together they capture `threshold` of the energy of C.

    GPM's criterion on the residual features: energy E = sum of eigenvalues^power (power 1 is the squared Frobenius norm
    of the features; power 2 is what the released InfLoRA and GainLoRA code uses); directions are added, largest first,
    until (E(C) - E(residual) + E(added)) / E(C) >= threshold. Columns come re-orthonormalised against `basis`; the old
    columns are never touched, so a stage only stores what it added. Computed where the moment is, returned on the CPU.
    """
    basis = basis.to(moment)
    block = moment.shape[0] // chunks
    values, vectors = leading(residual(moment, basis), chunks)
    columns = []
    for index in range(chunks):
        part = slice(index * block, (index + 1) * block)
        total = energy(moment[part, part], power)
        energies = values[index] ** power
        captured = total - energies.sum()
        needed = _count(energies, captured, total, threshold)
        columns.append(vectors[index][:, :needed])
    return orthonormalise(torch.cat(columns, dim=1), basis).cpu()


def energy(moment: Tensor, power: int) -> Tensor:
    """The sum of the eigenvalues^power, power 1 or 2, of a symmetric positive semidefinite second moment."""
    return moment.trace() if power == 1 else moment.square().sum()


def _count(energies: Tensor, captured: Tensor, total: Tensor, threshold: float) -> int:
    """How many leading directions reach the threshold; directions at round-off (1e-12 of the total) are never added."""
    if total <= 0:
        return 0
    reached = (captured + energies.cumsum(0)) / total
    wanted = 0 if captured / total >= threshold else int((reached < threshold).sum()) + 1
    return min(wanted, int((energies > 1e-12 * total).sum()))


def orthonormalise(columns: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns spanning the part of `columns` (d, j) outside span(basis); fp64. Twice is enough."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
        columns = torch.linalg.qr(columns).Q if columns.shape[1] else columns
    return columns


def complement(basis: Tensor) -> Tensor:
    """An orthonormal basis (d, d - k) of the orthogonal complement of span(M), fp64."""
    width, known = basis.shape
    if known == 0:
        return torch.eye(width, dtype=torch.float64)
    full = torch.linalg.qr(basis.double(), mode="complete").Q
    return full[:, known:].contiguous()


def _fix_sign(vectors: Tensor) -> Tensor:
    """Make the largest entry of each column positive: eigenvectors are unique only up to sign."""
    top = vectors.abs().argmax(dim=0)
    signs = vectors[top, torch.arange(vectors.shape[1])].sign()
    return vectors * torch.where(signs == 0, torch.ones_like(signs), signs)
