"""Derivatives of A = Q R as tensor operations, reverse and forward, for tall, square and wide A, real and complex.

They follow from dA = dQ R + Q dR with Q^H Q = 1 and R upper triangular with a real diagonal (Roberts & Roberts 2020,
arXiv:2009.10071). With the cotangents G, and A tall or square (m >= n): M = R G_R^H - G_Q^H Q and G_A = (G_Q + Q copyltu(M))
R^-H, where copyltu keeps the lower triangle and mirrors it. For a wide A, with U the first m columns of R: X = Q^H G_Q - G_R
R^H, T = the lower triangle of X - X^H with half its diagonal, and G_A = Q (G_R + [T U^-H | 0]); A itself is not needed. R is
never inverted, only used in triangular solves. A determines Q2, the columns of the complete Q beyond n, only up to a rotation;
the rules set the derivative of that rotation to zero.

Suffixes: m rows, n columns, k = min(m, n), any batch dimensions before them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import solve_triangular


def pull_back(q_mk: Tensor, r_kn: Tensor, g_q_mk: Tensor | None, g_r_kn: Tensor | None) -> Tensor | None:
    """Cotangent of A from those of reduced Q and R; None stands for zero."""
    if g_q_mk is None and g_r_kn is None:
        return None
    tall = q_mk.shape[-2] >= r_kn.shape[-1]
    return _pull_back_tall(q_mk, r_kn, g_q_mk, g_r_kn) if tall else _pull_back_wide(q_mk, r_kn, g_q_mk, g_r_kn)


def _pull_back_tall(q_mn: Tensor, r_nn: Tensor, g_q_mn: Tensor | None, g_r_nn: Tensor | None) -> Tensor:
    # M^H; only its upper triangle is used, which only depends on the upper triangle of G_R
    inner = None if g_r_nn is None else g_r_nn @ r_nn.mH
    if g_q_mn is not None:
        inner = _add_product(inner, q_mn.mH, g_q_mn, -1)
    assert inner is not None
    # transposed, because Q is column-major
    right = _add_product(None if g_q_mn is None else g_q_mn.mT, copyltu(inner.mH).mT, q_mn.mT, 1).mT
    return solve_triangular(r_nn.mH, right, upper=False, left=False)


def _pull_back_wide(q_mm: Tensor, r_mn: Tensor, g_q_mm: Tensor | None, g_r_mn: Tensor | None) -> Tensor:
    rows = r_mn.shape[-2]
    u_mm, v = r_mn[..., :rows], r_mn[..., rows:]
    inner = None if g_q_mm is None else q_mm.mH @ g_q_mm
    g_u_mm, g_v = None, torch.zeros_like(v)
    if g_r_mn is not None:
        g_u_mm, g_v = g_r_mn[..., :rows].triu(), g_r_mn[..., rows:]  # R is always zero below its diagonal
        inner = _add_product(_add_product(inner, g_u_mm, u_mm.mH, -1), g_v, v.mH, -1)
    assert inner is not None
    turned = solve_triangular(u_mm.mH, _skew_lower(inner), upper=False, left=False)
    return q_mm @ torch.cat([turned if g_u_mm is None else g_u_mm + turned, g_v], -1)


def _add_product(base: Tensor | None, x: Tensor, y: Tensor, factor: int) -> Tensor:
    """base + factor x y, fused if torch has an operation for it."""
    if base is None:
        return x @ y if factor == 1 else -(x @ y)
    if x.ndim == 2:
        return torch.addmm(base, x, y, alpha=factor)
    if x.ndim == 3:
        return torch.baddbmm(base, x, y, alpha=factor)
    return torch.add(base, x @ y, alpha=factor)


def push_forward(q_mk: Tensor, r_kn: Tensor, d_a_mn: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents of reduced Q and R from that of A."""
    if q_mk.shape[-2] >= r_kn.shape[-1]:
        moved = solve_triangular(r_kn, d_a_mn, upper=True, left=False)
        inner = q_mk.mH @ moved
        upper = inner - _rotation(inner)
        return moved - q_mk @ upper, (upper @ r_kn).triu()
    turned = q_mk.mH @ d_a_mn
    rows = r_kn.shape[-2]
    rotation = _rotation(solve_triangular(r_kn[..., :rows], turned[..., :rows], upper=True, left=False))
    return q_mk @ rotation, (turned - rotation @ r_kn).triu()


def pull_back_null_space(q_mm: Tensor, g_q_mm: Tensor, columns: int) -> Tensor:
    """Cotangent of Q's first ``columns``, including that of the others, which rotate with them to stay orthogonal."""
    q_1, q_2 = q_mm[..., :columns], q_mm[..., columns:]
    return g_q_mm[..., :columns] - q_2 @ (g_q_mm[..., columns:].mH @ q_1)


def push_forward_null_space(q_mm: Tensor, d_q_mk: Tensor) -> Tensor:
    """Tangent of the complete Q from that of its first columns."""
    k = d_q_mk.shape[-1]
    q_1, q_2 = q_mm[..., :k], q_mm[..., k:]
    return torch.cat([d_q_mk, -(q_1 @ (d_q_mk.mH @ q_2))], -1)


def rotation_dependence(q_mm: Tensor, g_q_mm: Tensor, columns: int) -> Tensor:
    """Dependence of a loss on rotations of the null-space columns, relative to its dependence on the columns, per matrix."""
    g_2 = g_q_mm[..., columns:]
    generator = q_mm[..., columns:].mH @ g_2
    size = torch.linalg.matrix_norm(g_2)
    return torch.linalg.matrix_norm(generator - generator.mH) / torch.where(size == 0, torch.ones_like(size), size)


def copyltu(x_nn: Tensor) -> Tensor:
    """The lower triangle mirrored to the upper triangle; real diagonal."""
    mirrored = x_nn.tril() + x_nn.tril(-1).mH
    return mirrored - _imaginary_diagonal(x_nn) if x_nn.is_complex() else mirrored


def _skew_lower(x_mm: Tensor) -> Tensor:
    """Lower triangle of X - X^H with half of its imaginary diagonal."""
    lower = (x_mm - x_mm.mH).tril(-1)
    return lower + _imaginary_diagonal(x_mm) if x_mm.is_complex() else lower


def _rotation(x_kk: Tensor) -> Tensor:
    """The skew-Hermitian matrix S for which X - S is upper triangular with a real diagonal."""
    lower = x_kk.tril(-1)
    rotation = lower - lower.mH
    return rotation + _imaginary_diagonal(x_kk) if x_kk.is_complex() else rotation


def _imaginary_diagonal(x_kk: Tensor) -> Tensor:
    diagonal = x_kk.diagonal(dim1=-2, dim2=-1)
    return torch.diag_embed((diagonal - diagonal.conj()) / 2)
