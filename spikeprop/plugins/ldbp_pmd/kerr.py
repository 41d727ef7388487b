"""``rotate_and_turn``: the nonlinear part of a learned step, a 2x2 matrix and the Kerr phase, with gradient.

z = y exp(j kerr |y|^2), y = M x, |y|^2 summed over polarisations. With the gradient g of z and phi = sum_p Im(conj(z) g): the
gradient of y is exp(-j kerr |y|^2) g + 2 kerr phi y, that of kerr is sum phi |y|^2, that of x is M^H g_y and that of M is g_y
x^H. This takes one pass over the samples in each direction; the elementwise operations under autograd (``reference``) store and
read several times as much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprop.plugins.ldbp_pmd import kernels
from spikeprop.plugins.ldbp_pmd.link import kerr_phase


def rotate_and_turn(x: Tensor, kerr: Tensor, matrix: Tensor | None = None) -> Tensor:
    """The part of a step without the filters.

    Args:
        x: (B, P, N) complex.
        kerr: () real, rad/W; negative values compensate the fibre.
        matrix: (2, 2) complex, for two polarisations.

    Returns:
        (B, P, N).

    """
    if x.device.type == "cpu":
        return _Step.apply(x, kerr, matrix)  # pyright: ignore
    return reference(x, kerr, matrix)


def reference(x: Tensor, kerr: Tensor, matrix: Tensor | None = None) -> Tensor:
    """The same, differentiated by autograd."""
    return kerr_phase(x if matrix is None else torch.einsum("ij,bjn->bin", matrix, x), kerr)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kerr: Tensor, matrix: Tensor | None) -> Tensor:
        x = x.contiguous().resolve_conj()
        y, power = x, torch.empty(x.shape[0], x.shape[2], dtype=x.real.dtype)
        if matrix is None:
            kernels.measure(_pairs(x), power.numpy())
        else:
            y = torch.empty_like(x)
            kernels.rotate(_pairs(x), _flat(matrix), _pairs(y), power.numpy())
        phase, z = kerr * power, torch.empty_like(x)
        cosine, sine = torch.cos(phase), torch.sin(phase)
        kernels.turn(_pairs(y), cosine.numpy(), sine.numpy(), _pairs(z))
        ctx.save_for_backward(x, kerr, matrix, y, power, cosine, sine)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # pyright: ignore
        x, kerr, matrix, y, power, cosine, sine = ctx.saved_tensors
        g = gradient.resolve_conj().clone(memory_format=torch.contiguous_format)
        number = kerr.detach().to(power).numpy()[()]
        by_kerr = kernels.turn_back(_pairs(y), cosine.numpy(), sine.numpy(), power.numpy(), _pairs(g), number)
        by_matrix = None
        if matrix is not None:
            by_matrix = torch.zeros(8, dtype=torch.float64)
            kernels.rotate_back(_pairs(x), _flat(matrix), _pairs(g), by_matrix.numpy())
            by_matrix = torch.view_as_complex(by_matrix.view(2, 2, 2)).to(matrix)
        return g, torch.as_tensor(by_kerr).to(kerr), by_matrix


def _pairs(x: Tensor) -> Any:
    return torch.view_as_real(x.detach()).flatten(-2).numpy()


def _flat(matrix: Tensor) -> Any:
    return torch.view_as_real(matrix.detach().resolve_conj().contiguous()).flatten().numpy()
