"""The angle between two gradients, as rules and their comparisons report it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def degrees(a: Tensor, b: Tensor) -> Tensor:
    """The angle () between two tensors, in double precision; 90 if one of them is 0.

    By the arctangent, which is exact near 0: the arccosine in single precision knows no angle between 0 and 0.02 degrees.
    """
    x, y = a.double().flatten(), b.double().flatten()
    if not (x.any() and y.any()):
        return a.new_tensor(90.0)
    x, y = x / x.norm(), y / y.norm()
    return (2 * torch.atan2((x - y).norm(), (x + y).norm()) * (180 / math.pi)).to(a.dtype)
