"""A write into a part of a tensor, such as ``h[:, 0] = x``, as a call without a side effect.

In autograd the write gives the tensor a new history. Here it is a new value: a copy of the tensor with other entries. A write
through a view is refused (``trace``): in autograd it changes the history of all tensors with the same memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SETTING = "__setitem__"


def assigned(target: Tensor, index: Any, value: Tensor) -> Tensor:
    """A copy of ``target`` in which the entries at ``index`` are ``value``."""
    found = target.clone()
    found[index] = value
    return found


def value_of(target: Tensor, value: Any) -> Tensor:
    """What is assigned, as a tensor of the target's type: so a number is an input of the call, with an entry of its own."""
    if isinstance(value, Tensor):
        return value if value.dtype == target.dtype or value.requires_grad else value.to(target.dtype)
    return torch.as_tensor(value, dtype=target.dtype, device=target.device)


def repeats(target: Tensor, index: Any) -> bool:
    """Whether an index names an entry twice: which of the values stays is not defined."""
    places = torch.arange(target.numel()).view(target.shape)[index]
    return len(places.unique()) < places.numel()
