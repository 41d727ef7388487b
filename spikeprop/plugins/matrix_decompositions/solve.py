"""Least squares by QR and LQ: x = R^-1 Q^H b minimises |A x - b|^2; for wide A, x = Q^H L^-1 b is the smallest exact solution.

This application needs the derivatives of the decompositions (Roberts & Roberts 2020, arXiv:2009.10071). A^H A, which squares the
condition number, is computed in neither direction, and no matrix is inverted. Autograd combines the derivatives of the factors.

For an A of any rank ``minimum_norm`` solves by a complete orthogonal decomposition: pivoted QR, then LQ of the rows that are not
zero (Golub & Van Loan 2013, Matrix Computations, section 5.5.2). Its derivative is that of x = A^+ b among matrices of the same
rank (Golub & Pereyra 1973, SIAM J. Numer. Anal. 10(2)):

    dA^+ = -A^+ dA A^+ + A^+ A^+H dA^H (1 - A A^+) + (1 - A^+ A) dA^H A^+H A^+
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from spikeprop.plugins.matrix_decompositions.autocast import in_float32, without_autocast
from spikeprop.plugins.matrix_decompositions.factors import factor, factor_pivoted
from spikeprop.plugins.matrix_decompositions.functions import adjoint, check_arguments, check_tensor, qr_of
from spikeprop.runtime.arguments import is_real, shown


@in_float32
def least_squares(A: Tensor, b: Tensor, *, check: bool = True) -> Tensor:
    """The minimiser x of |A x - b|; for wide A the smallest one.

    Args:
        A: (..., m, n), real or complex, with full rank min(m, n).
        b: (..., m) with the batch dimensions of A, or (..., m, k) with batch dimensions that broadcast with those of A.
        check: refuse an A that is not finite, or without full rank, for which there is ``minimum_norm``. Without the check, x has
            infinities, NaN or arbitrary numbers there.

    Returns:
        x: (..., n), or (..., n, k); not finite where b is not.

    Raises:
        RankError: with ``check``, columns (rows, for wide A) are linearly dependent, or A is not finite.
        ValueError: shapes or types do not fit.
    """
    right, vectors = _columns("least_squares", A, b, check)
    if A.shape[-2] >= A.shape[-1]:
        q, r = qr_of(A, "reduced", "refuse", "least_squares" if check else "")
        x = solve_triangular(r, q.mH @ right, upper=True)
    else:
        q, r = qr_of(adjoint(A), "reduced", "refuse", "least_squares of A^H" if check else "")
        x = q @ solve_triangular(r.mH, right, upper=False)
    return x.squeeze(-1) if vectors else x


@in_float32
def minimum_norm(A: Tensor, b: Tensor, *, rtol: float | None = None) -> Tensor:
    """The smallest x among the minimisers of |A x - b|, for one matrix A of any rank: ``pinv(A) @ b`` without an SVD.

    Args:
        A: (m, n), real or complex.
        b: (m,) or (m, k).
        rtol: pivots |R[i, i]| up to rtol |R[0, 0]| count as zero, from 0 to below 1. None is 10 sqrt(max(m, n)) eps, the bound of
            ``qr``. numpy's and torch's max(m, n) eps is made for singular values: pivots of exactly dependent columns were
            measured at up to 5.6 eps |R[0, 0]|, also of 2 x 2 matrices, which that bound would take for full rank.

    Returns:
        x: (n,) or (n, k); not finite where b is not. Its derivatives, of any order in reverse mode, are those along matrices of
        A's rank; a change that raises the rank makes x jump, and no derivative can tell.

    Raises:
        ValueError: shapes or types do not fit, or A is not finite.
    """
    right, vectors = _columns("minimum_norm", A, b, True)
    if A.ndim != 2:
        raise ValueError(f"minimum_norm: A has shape {tuple(A.shape)}; it solves for one matrix (m, n): ranks differ in a batch")
    if not bool(torch.isfinite(A.detach()).all()):
        raise ValueError("minimum_norm: A is not finite; find the origin of that value")
    if rtol is None:
        rtol = 10 * max(A.shape) ** 0.5 * torch.finfo(A.dtype).eps
    elif not (is_real(rtol) and 0 <= rtol < 1):
        raise ValueError(f"minimum_norm: rtol is {shown(rtol)}; it must be a number from 0 to below 1")
    largest = float(A.detach().abs().max()) if A.numel() else 0.0
    _, exponent = math.frexp(max(largest, torch.finfo(A.dtype).tiny))
    scale = 0.5**exponent  # a power of two, so nothing is rounded, and norms of columns do not overflow
    x = _MinimumNorm.apply(A * scale, right * scale, rtol, None)
    return x.squeeze(-1) if vectors else x


def _columns(name: str, A: Tensor, b: Tensor, check: bool) -> tuple[Tensor, bool]:
    """b as columns (..., m, k), and whether it was a vector."""
    check_arguments(name, A, "reduced", "refuse", check)
    check_tensor(name, "b", b)
    vectors = b.ndim == A.ndim - 1 and b.shape == A.shape[:-1]
    if not vectors and (b.ndim < 2 or b.shape[-2] != A.shape[-2]):
        raise ValueError(f"{name}: b is {tuple(b.shape)}; for an A of {tuple(A.shape)} it must be (..., m) or (..., m, k)")
    if A.dtype != b.dtype:
        raise ValueError(f"{name}: A is {A.dtype} and b is {b.dtype}; convert one to the other")
    return b.unsqueeze(-1) if vectors else b, vectors


class _MinimumNorm(torch.autograd.Function):
    """A^+ b. The backward pass solves with A and A^H again, by this function, so it can be differentiated too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, rtol: float, rank: int | None) -> Tensor:
        q, r, pivots = factor_pivoted(a, False, "")
        sizes = r.diagonal().abs()
        if rank is None:  # A^H has other pivots, which may lie on the other side of rtol; its rank is that of A
            rank = int((sizes > rtol * sizes[:1]).sum())
        basis, triangle = factor(adjoint(r[:rank]), False, "")  # R = L Z with L = triangle^H, Z = basis^H
        inner = solve_triangular(triangle.mH, q[:, :rank].mH @ b, upper=False)
        x = (basis @ inner)[pivots.argsort()]
        ctx.save_for_backward(a, b, x)
        ctx.rank = rank
        return x

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b, x = ctx.saved_tensors
        (g,) = grads
        k, a_h = x.shape[1], adjoint(a)
        solved = _MinimumNorm.apply(a_h, torch.cat([g, x], 1), 0.0, ctx.rank)  # A^+H g and A^+H x
        g_b, dual = solved[:, :k], solved[:, k:]
        again = _MinimumNorm.apply(a, torch.cat([g_b, a @ g], 1), 0.0, ctx.rank)  # A^+ A^+H g and A^+ A g
        outside = g - again[:, k:]
        g_a = (b - a @ x) @ again[:, :k].mH + dual @ outside.mH - g_b @ x.mH
        return g_a, g_b, None, None
