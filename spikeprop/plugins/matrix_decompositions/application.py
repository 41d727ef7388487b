"""``apply_q``: Q C or Q^H C without forming Q, from the Householder vectors of A = Q R (LAPACK's geqrf and ormqr).

With the reduced Q (m, n) of a tall A and the cotangents G of the product and of R, the QR rule (Roberts & Roberts 2020,
arXiv:2009.10071) needs Q in products alone, because G_Q has the rank of C:

    Y = Q^H C:  G_C = Q G_Y,    G_A = (C G_Y^H + Q copyltu(R G_R^H - G_Y Y^H)) R^-H
    Y = Q C:    G_C = Q^H G_Y,  G_A = (G_Y C^H + Q copyltu(R G_R^H - C G_C^H)) R^-H

The Q of a wide A depends on its first m columns only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from spikeprop.plugins.matrix_decompositions.autocast import in_float32, without_autocast
from spikeprop.plugins.matrix_decompositions.factors import check_rank
from spikeprop.plugins.matrix_decompositions.functions import check_arguments, check_bool, check_tensor, derivative_wanted
from spikeprop.plugins.matrix_decompositions.rules import copyltu


class Applied(NamedTuple):
    """The product, and R of the same factorisation."""

    Y: Tensor
    R: Tensor


@in_float32
def apply_q(A: Tensor, C: Tensor, *, adjoint: bool = False, check: bool = True) -> Applied:
    """Q C, or with ``adjoint`` Q^H C, for the reduced Q of A = Q R; Q, of m k numbers, is not formed.

    So ``y, r = apply_q(A, b, adjoint=True)`` and ``solve_triangular(r, y, upper=True)`` solve least squares. Differentiable in
    reverse mode, any number of times; not in forward mode, and not under ``vmap``, for which there is ``qr``.

    Args:
        A: (..., m, n), float32, float64, complex64 or complex128; k = min(m, n).
        C: (..., k, p), with ``adjoint`` (..., m, p), with the batch dimensions and the type of A.
        adjoint: apply Q^H.
        check: where a derivative by A may be wanted, refuse matrices whose factors have none.

    Returns:
        Y (..., m, p), with ``adjoint`` (..., k, p); R (..., k, n).

    Raises:
        RankError: with ``check``, one of the first k columns depends on earlier columns, or is not finite.
        ValueError: shapes or types do not fit.
    """
    check_arguments("apply_q", A, "reduced", "refuse", check)
    check_bool("apply_q", "adjoint", adjoint)
    check_tensor("apply_q", "C", C)
    *batch, m, n = A.shape
    k = min(m, n)
    due = (*batch, m if adjoint else k)
    if C.ndim != A.ndim or C.shape[:-1] != due or C.dtype != A.dtype:
        raise ValueError(f"apply_q: C is {tuple(C.shape)}, {C.dtype}; it must be {due} and a number of columns, {A.dtype}")
    y, r = _ApplyQ.apply(A[..., :k], C, adjoint)
    if n > k:
        beyond = _ApplyQ.apply(A[..., :k], A[..., k:], True)[0]
        r = torch.cat([r, beyond], -1)
    if check and derivative_wanted(A):
        check_rank(r.detach(), m, "apply_q", None)
    return Applied(y, r)


def _product(reflectors: Tensor, tau: Tensor, c: Tensor, adjoint: bool) -> Tensor:
    m, k = reflectors.shape[-2:]
    if adjoint:
        return torch.ormqr(reflectors, tau, c, transpose=True)[..., :k, :]
    return torch.ormqr(reflectors, tau, torch.nn.functional.pad(c, (0, 0, 0, m - k)))


class _ApplyQ(torch.autograd.Function):
    """(A tall (..., m, k), C) to (Y, R)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, adjoint: bool) -> tuple[Tensor, Tensor]:
        reflectors, tau = torch.geqrf(a)
        y, r = _product(reflectors, tau, c, adjoint), reflectors[..., : a.shape[-1], :].triu()
        ctx.save_for_backward(a, c, y, r)
        ctx.adjoint, ctx.factors = adjoint, (reflectors, tau)
        return y, r

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        a, c, y, r = ctx.saved_tensors
        g_y, g_r = grads
        reflectors, tau = ctx.factors

        def apply(x: Tensor, adjoint: bool) -> Tensor:
            """By the factors at hand, or differentiable where a second derivative is wanted."""
            return _ApplyQ.apply(a, x, adjoint)[0] if torch.is_grad_enabled() else _product(reflectors, tau, x, adjoint)

        g_c = apply(g_y, not ctx.adjoint)
        inner = r @ g_r.mH - (g_y @ y.mH if ctx.adjoint else c @ g_c.mH)
        outer = c @ g_y.mH if ctx.adjoint else g_y @ c.mH
        return solve_triangular(r.mH, outer + apply(copyltu(inner), False), upper=False, left=False), g_c, None
