"""Activations for ANNs that will be converted: like a firing rate, they saturate, at a trained ceiling.

    ClippedReLU (TCL):   h(z) = clip(z, 0, ceiling)
    QCFS:                h(z) = ceiling * clip(floor(z * L / ceiling + 1/2) / L, 0, 1)

The ceiling becomes the activation scale, the value of one spike per step: at the ceiling a neuron fires in every step. QCFS also
has L levels, as a neuron has T + 1 firing rates; its shift of 1/2 corresponds to a neuron that starts at half its threshold.
Without batch-norm a layer's activations can be small at first: choose an initial ceiling of their size, or every level but 0 is
empty.

Sources: TCL, Ho & Chang 2021 (arXiv:2008.04509); QCFS, Bu et al. 2022 (arXiv:2303.04347).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["QCFS", "Clipped", "ClippedReLU"]

LEAST_CEILING = 1e-4


class Clipped(nn.Module, ABC):
    """An activation with a trained ceiling, one for each layer.

    The ceiling is an ordinary parameter, with the optimiser's learning rate and weight decay like the weights, as in the QCFS
    authors' code; TCL's L2 penalty on the ceiling is that weight decay, without a coefficient of its own. ``fit`` keeps the
    ceiling positive by calling ``project_parameters`` after every step; your own loop must do so too.

    Attributes:
        ceiling: parameter (), positive: the value at which it clips, in the units of the layer's input.
    """

    def __init__(self, ceiling: float):
        super().__init__()
        if not ceiling > 0:
            raise ValueError(f"ceiling is {ceiling}; it must be positive")
        self.ceiling = nn.Parameter(torch.tensor(float(ceiling)))

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Activations of any shape."""

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Raise a ceiling that a step made smaller than 1e-4 to 1e-4."""
        self.ceiling.clamp_(min=LEAST_CEILING)

    def extra_repr(self) -> str:
        return f"ceiling={float(self.ceiling.detach()):.4g}"


class ClippedReLU(Clipped):
    """clip(z, 0, ceiling): the trainable clipping layer of Ho & Chang 2021; only clipped values give the ceiling a gradient.

    Args:
        ceiling: its initial value.
    """

    def __init__(self, *, ceiling: float = 4.0):
        super().__init__(ceiling)

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z < self.ceiling, torch.relu(z), self.ceiling)


class QCFS(Clipped):
    """Quantisation clip-floor-shift of Bu et al. 2022, eq. 16 with shift 1/2.

    The floor has a straight-through gradient (their sec. 4.3), which gives, with c the ceiling,

        dh/dz = 1                where -c/2L < z < c - c/2L, else 0
        dh/dc = (h - z) / c      there, 1 above it, 0 below it

    The authors' code clips before it rounds, which shifts this window by c/2L; the values h are the same.

    Convert to neurons with v_init=0.5.

    Args:
        levels: L, the levels above zero; they recommend 4 or 8. More levels suit large T, fewer small T.
        ceiling: its initial value; 8 in the authors' code, whose layers have batch-norm.
    """

    def __init__(self, *, levels: int = 8, ceiling: float = 8.0):
        super().__init__(ceiling)
        if levels < 1:
            raise ValueError(f"levels is {levels}; use at least 1")
        self.levels = levels

    def forward(self, z: Tensor) -> Tensor:
        h: Any = _ClipFloorShift.apply(z, self.ceiling, self.levels)
        return h

    def extra_repr(self) -> str:
        return f"levels={self.levels}, {super().extra_repr()}"


class _ClipFloorShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, ceiling: Tensor, levels: int) -> Tensor:
        h = (z * (levels / ceiling)).add_(0.5).floor_().clamp_(0, levels).mul_(ceiling / levels)
        ctx.save_for_backward(z, h, ceiling)
        ctx.half = 0.5 / levels
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad_h,) = grads
        z, h, ceiling = ctx.saved_tensors
        half = ceiling * ctx.half
        grad_z = grad_h * ((z >= -half) & (z < ceiling - half))
        # above the window h is the ceiling, below it 0: there h / ceiling is the slope, and grad_z is 0
        grad_ceiling = (grad_h * h).sub_(grad_z * z).sum(dtype=ceiling.dtype) / ceiling
        return grad_z, grad_ceiling, None


def make(activation: Clipped | None) -> nn.Module:
    """The activation of one layer: a copy of the prototype, or ReLU if there is none."""
    return nn.ReLU() if activation is None else copy.deepcopy(activation)
