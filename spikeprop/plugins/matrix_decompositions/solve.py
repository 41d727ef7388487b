"""Least squares by QR and LQ: x = R^-1 Q^H b minimises |A x - b|^2, or for wide A, x = Q^H L^-1 b, the smallest exact solution.

The use of the decompositions that needs their derivatives (Roberts & Roberts 2020, arXiv:2009.10071). A^H A, which squares the
condition number, is formed in neither direction, and no matrix is inverted. Every derivative is that of its parts.
"""

from __future__ import annotations

from torch import Tensor
from torch.linalg import solve_triangular

from spikeprop.plugins.matrix_decompositions.functions import lq, qr


def least_squares(A: Tensor, b: Tensor, *, check: bool = True) -> Tensor:
    """x with the smallest |A x - b|, and for wide A the smallest such x.

    Args:
        A: (..., m, n), real or complex, of full rank min(m, n).
        b: (..., m) with A's batch dimensions exactly, or (..., m, k) with batch dimensions that broadcast with A's.
        check: refuse an A whose rank is too low.

    Returns:
        (..., n), or (..., n, k).

    Raises:
        RankError: with ``check``, columns (rows, for wide A) depend on each other.
        ValueError: shapes or types that do not fit.
    """
    vectors = b.ndim == A.ndim - 1 and b.shape == A.shape[:-1]
    if not vectors and (b.ndim < 2 or b.shape[-2] != A.shape[-2]):
        raise ValueError(f"least_squares: b is {tuple(b.shape)}; for an A of {tuple(A.shape)} it must be (..., m) or (..., m, k)")
    if A.dtype != b.dtype:
        raise ValueError(f"least_squares: A is {A.dtype} and b is {b.dtype}; convert one to the other")
    right = b.unsqueeze(-1) if vectors else b
    if A.shape[-2] >= A.shape[-1]:
        q, r = qr(A, check=check)
        x = solve_triangular(r, q.mH @ right, upper=True)
    else:
        l, q = lq(A, check=check)  # noqa: E741
        x = q.mH @ solve_triangular(l, right, upper=False)
    return x.squeeze(-1) if vectors else x
