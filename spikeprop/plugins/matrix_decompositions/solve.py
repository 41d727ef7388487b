"""Least squares by QR and LQ: x = R^-1 Q^H b minimises |A x - b|^2; for wide A, x = Q^H L^-1 b is the smallest exact solution.

This application needs the derivatives of the decompositions (Roberts & Roberts 2020, arXiv:2009.10071). A^H A, which squares the
condition number, is computed in neither direction, and no matrix is inverted. Autograd combines the derivatives of the factors.
"""

from __future__ import annotations

from torch import Tensor
from torch.linalg import solve_triangular

from spikeprop.plugins.matrix_decompositions.functions import lq, qr


def least_squares(A: Tensor, b: Tensor, *, check: bool = True) -> Tensor:
    """The minimiser x of |A x - b|; for wide A the smallest one.

    Args:
        A: (..., m, n), real or complex, with full rank min(m, n).
        b: (..., m) with the batch dimensions of A, or (..., m, k) with batch dimensions that broadcast with those of A.
        check: refuse an A without full rank.

    Returns:
        x: (..., n), or (..., n, k).

    Raises:
        RankError: with ``check``, columns (rows, for wide A) are linearly dependent.
        ValueError: shapes or types do not fit.
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
