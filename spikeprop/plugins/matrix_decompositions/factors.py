"""The factorisations without derivatives: Householder QR by torch, pivoted QR by LAPACK's geqp3, and the rank check.

``functions`` makes torch custom operators of them, in their own namespace, so that ``torch.compile`` includes them in its graph.
geqp3 runs on the host (scipy's LAPACK); tensors of other devices are copied there and back. One factorisation gives pivots and
factors.
"""

from __future__ import annotations

from math import inf, isfinite, prod

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from spikeprop.errors import RankError

_GEQP3 = {
    torch.float32: lapack.sgeqp3,
    torch.float64: lapack.dgeqp3,
    torch.complex64: lapack.cgeqp3,
    torch.complex128: lapack.zgeqp3,
}
_BLOCK = 64  # block size for LAPACK's work space, which is small compared to the matrix


def factor(a_mn: Tensor, complete: bool, check: str) -> tuple[Tensor, Tensor]:
    """Q and R of each matrix of a batch.

    Args:
        a_mn: matrices (..., m, n).
        complete: compute a square Q.
        check: name of the function in rank errors: "qr", "lq" (then A is the adjoint), or "" for no check.

    Raises:
        RankError: one of the first min(m, n) columns depends on earlier columns, or is not finite.
    """
    q, r = torch.linalg.qr(a_mn, mode="complete" if complete else "reduced")
    if check:
        check_rank(r, a_mn.shape[-2], check, None)
    return q, r


def factor_pivoted(a_mn: Tensor, complete: bool, check: str) -> tuple[Tensor, Tensor, Tensor]:
    """Q, R and pivots p of each matrix of a batch: A[:, p] = Q R, with decreasing absolute values on the diagonal of R.

    Raises:
        RankError: ``check`` is not empty, and the rank is below min(m, n), or R is not finite.
    """
    *batch, m, n = a_mn.shape
    k = min(m, n)
    # rows of the transposed copy are columns in LAPACK's order; geqp3 overwrites it
    matrices = prod(batch)
    packed_BNM = a_mn.detach().reshape(matrices, m, n).mT.to("cpu", copy=True, memory_format=torch.contiguous_format)
    packed_BNM, pivots, tau = _geqp3(packed_BNM.resolve_conj().resolve_neg())
    reflectors = packed_BNM.mT.reshape(*batch, m, n).to(a_mn.device)
    tau, pivots = tau.reshape(*batch, k).to(a_mn.device), pivots.reshape(*batch, n).to(a_mn.device)
    width = m if complete else k
    basis = reflectors[..., :k]
    if width > k:
        basis = torch.cat([basis, basis.new_zeros(*batch, m, width - k)], -1)
    q, r = torch.linalg.householder_product(basis, tau), reflectors[..., :width, :].triu()
    if check:
        check_rank(r, a_mn.shape[-2], check, pivots)
    return q, r, pivots


def _geqp3(packed_BNM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite the matrices by Householder vectors; returns them, pivots (B, N) and scales of the vectors (B, min(M, N))."""
    batch, n, m = packed_BNM.shape
    routine, matrices = _GEQP3[packed_BNM.dtype], packed_BNM.numpy()
    pivots = np.tile(np.arange(n), (batch, 1))
    scales = np.empty((batch, min(m, n)), matrices.dtype)
    if not matrices.size:  # LAPACK's wrapper refuses empty matrices
        return packed_BNM, torch.from_numpy(pivots), torch.from_numpy(scales)
    work = (n + 1) * _BLOCK + (0 if packed_BNM.is_complex() else 2 * n)
    for index, matrix in enumerate(matrices):
        given = matrix.T
        found, order, scales[index], _, info = routine(given, lwork=work, overwrite_a=1)
        if info:
            raise RuntimeError(f"pivoted_qr: LAPACK's geqp3 refused its argument {-info}")
        if found is not given:
            given[...] = found
        pivots[index] = order - 1  # LAPACK counts from one
    return packed_BNM, torch.from_numpy(pivots), torch.from_numpy(scales)


def check_rank(r: Tensor, rows: int, check: str, pivots: Tensor | None) -> None:
    """Raise RankError if an entry of R's diagonal is below the rounding error of its own column.

    QR does not change with the scale of a column, so each is compared with its own norm. Entries of truly dependent columns
    were measured at 2, 5 and 350 eps times that norm for 1e2, 1e4 and 1e6 rows: 10 sqrt(rows) leaves a margin of 28 and more.
    """
    k, diagonal = min(r.shape[-2:]), r.diagonal(dim1=-2, dim2=-1)
    factor = 10 * rows**0.5 * torch.finfo(r.dtype).eps
    # sufficient, and half of the operations, which are the time where matrices are small
    if not r.numel() or bool(torch.linalg.vector_norm(diagonal, -inf) > factor * rows**0.5 * torch.linalg.vector_norm(r, inf)):
        return
    largest = r[..., :k].abs().amax(-2, keepdim=True)  # squares of its entries would overflow or vanish in a norm
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    diagonal, bound = diagonal.abs(), factor * largest.squeeze(-2) * torch.linalg.vector_norm(r[..., :k] / largest, dim=-2)
    sound = diagonal > bound  # False for NaN
    if bool(sound.all()):
        return
    *where, column = (~sound).nonzero()[0].tolist()
    size, limit = float(diagonal[(*where, column)]), float(bound[(*where, column)])
    place = f" of matrix {where[0] if len(where) == 1 else tuple(where)}" if where else ""
    line, lines, triangle = ("row", "columns", "L") if check == "lq" else ("column", "rows", "R")
    if not (isfinite(size) and isfinite(limit)):
        raise RankError(f"{check}: {line} {column}{place} or one before it is not finite; find the origin of that value")
    found = f"|{triangle}[{column}, {column}]| = {size:.3g} <= {limit:.3g} = 10 sqrt({lines}) * eps * norm of the {line}"
    if pivots is not None:
        pivot = int(pivots[(*where, column)])
        raise RankError(
            f"{check}: the rank{place} is {column} of {k}, column {pivot} depends on the pivots before it: {found}. The factors "
            "have no derivative there; remove columns, add a ridge, or use check=False if derivatives are not needed"
        )
    remedy = (
        "The factors have no derivative there; use pivoted_qr if A has full rank, or check=False if derivatives are not needed"
    )
    if check.startswith("least_squares"):
        remedy = "Many x are as good, or nearly; minimum_norm(A, b) gives the smallest for one matrix A of any rank"
    raise RankError(f"{check}: {line} {column}{place} depends on the {line}s before it: {found}. {remedy}")
