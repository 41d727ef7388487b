"""Ordinary tensors: dense, real and with values, which every operation of a network can read; others are refused in words."""

from __future__ import annotations

import torch
from torch import Tensor


def unusual(x: Tensor) -> str | None:
    """What a tensor is that a network cannot read, and what to pass instead; None of an ordinary one."""
    if x.is_nested:
        return "is a nested tensor; pad its examples to one shape and stack them: x.to_padded_tensor(0.0)"
    if x.layout is not torch.strided:
        return f"is stored as {_name(x.layout)}; pass x.to_dense()"
    if x.is_meta:
        return "is on the meta device, which holds shapes without values; make it on the CPU"
    if x.is_quantized:
        return f"is quantised ({_name(x.dtype)}); pass x.dequantize()"
    if x.is_complex():
        return f"is complex ({_name(x.dtype)}), and networks are real; pass torch.view_as_real(x) or x.abs()"
    return None


def trainable(x: Tensor) -> Tensor:
    """The tensor, or a copy where autograd could not save it: one made in inference mode that is used outside of it."""
    return x.clone() if x.is_inference() and torch.is_grad_enabled() and not torch.is_inference_mode_enabled() else x


def _name(kind: object) -> str:
    return str(kind).removeprefix("torch.")
