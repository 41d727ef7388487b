"""Layers with weights, and what can be folded into them: factors of their outputs or inputs, and which inputs they read.

Of convolutions, of any number of axes and transposed ones too, channels are meant; of linear layers numbers of a vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.snn.synapse import TRANSPOSED, WEIGHTED, Weighted

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by number of axes of positions


def by_channel(op: nn.Module | None, axes: int) -> bool:
    """Whether an operation has weights, and one output for each channel of its result (C, ...) of ``axes`` axes of positions.

    A linear layer on tokens acts on their last axis, which is not that of channels.
    """
    return isinstance(op, WEIGHTED) and (axes == 0 or not isinstance(op, nn.Linear))


def scale_outputs(layer: Weighted, gain: Tensor) -> None:
    """Multiply the weights by a factor, or one an output; biases stay."""
    weight = layer.weight.data
    if gain.numel() == 1:
        weight.mul_(gain.reshape(()))
    elif isinstance(layer, TRANSPOSED):
        by_group = gain.reshape(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
        weight.view(layer.groups, -1, *weight.shape[1:]).mul_(by_group)
    else:
        weight.mul_(gain.reshape(-1, *(1,) * (weight.dim() - 1)))


def scale_inputs(layer: Weighted, gain_C: Tensor) -> None:
    """Multiply the weights by a factor for each input."""
    weight = layer.weight.data
    if isinstance(layer, nn.Linear):
        weight.mul_(gain_C)
    elif isinstance(layer, TRANSPOSED):
        weight.mul_(gain_C.reshape(-1, *(1,) * (weight.dim() - 1)))
    else:
        by_group = gain_C.reshape(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
        weight.view(layer.groups, -1, *weight.shape[1:]).mul_(by_group)


def input_count(layer: Weighted) -> int:
    """Channels, or numbers, that a layer reads."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def read_only(layer: Weighted, part: slice) -> None:
    """Let a layer of one group read only these of its inputs."""
    own = layer.weight.detach()[part] if isinstance(layer, TRANSPOSED) else layer.weight.detach()[:, part]
    layer.weight = nn.Parameter(own.clone(), layer.weight.requires_grad)
    count = len(range(input_count(layer))[part])
    if isinstance(layer, nn.Linear):
        layer.in_features = count
    else:
        layer.in_channels = count


def conv_like(weight: Tensor, bias: Tensor | None, transposed: bool, **settings: Any) -> Weighted:
    """A convolution with the weights and settings of a function's call."""
    kinds: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d} if transposed else CONVS
    groups, size = settings.get("groups", 1), tuple(weight.shape[2:])
    first, second = (len(weight), weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, len(weight))
    options = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    return kinds[len(size)](first, second, size, **settings, **options)


def diagonal(gain_C: Tensor, axes: int, bias: bool) -> Weighted:
    """A factor by channel as a layer: a convolution of kernel 1 with a group for each channel, or of vectors a matrix."""
    count, options = len(gain_C), {"bias": bias, "device": gain_C.device, "dtype": gain_C.dtype}
    if axes == 0:
        layer: Weighted = nn.Linear(count, count, **options)
        layer.weight = nn.Parameter(torch.diag(gain_C.detach()))
        return layer
    layer = CONVS[axes](count, count, 1, groups=count, **options)
    layer.weight = nn.Parameter(gain_C.detach().reshape(-1, *(1,) * (axes + 1)).clone())
    return layer


def chosen(indices: Tensor, count: int, axes: int, options: dict[str, Any]) -> Weighted:
    """A layer that copies some of ``count`` channels."""
    kind: Any = nn.Linear if axes == 0 else CONVS[axes]
    layer = kind(count, len(indices), *([1] if axes else []), bias=False, **options)
    ones = torch.eye(count, dtype=layer.weight.dtype)[indices].reshape(len(indices), count, *(1,) * axes)
    layer.weight = nn.Parameter(ones.to(layer.weight.device), requires_grad=False)  # the selection is not trained
    return layer
