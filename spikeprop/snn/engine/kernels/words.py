"""Spikes as words: 32 channels a 32-bit integer, so a neuron costs one bit a step. Plain torch, any device.

Layout: values lie channels-last, (K, B, S, C), S positions (of all axes after the channels, 1 for a vector); words are
(K, B, S, W) with W = ceil(C / 32), bit c % 32 of word c // 32. Suffix legend: K steps, B batch, S positions, C channels, W words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BITS = 32


def word_count(channels: int) -> int:
    """Words that hold ``channels`` bits."""
    return -(-channels // BITS)


def position_count(shape: tuple[int, ...]) -> int:
    """Positions S of a sample of ``shape``: of all axes after the channels, 1 for a vector."""
    return math.prod(shape[1:])


def pack(values_KBSC: Tensor) -> Tensor:
    """Words (..., W) int32 of values (..., C); whatever is not 0 is a spike."""
    channels = values_KBSC.shape[-1]
    padded = torch.nn.functional.pad((values_KBSC != 0).long(), (0, word_count(channels) * BITS - channels))
    shifts = torch.arange(BITS, device=values_KBSC.device)
    words = (padded.unflatten(-1, (-1, BITS)) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words_KBSW: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Spikes (..., C) of 0 and 1 from words (..., W)."""
    shifts = torch.arange(BITS, dtype=torch.int32, device=words_KBSW.device)
    bits = (words_KBSW.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :channels].to(dtype)


def channels_last(x: Tensor, steps: int) -> Tensor:
    """(K*B, C, ...) as (K, B, S, C), contiguous; no copy where it lies channels-last already."""
    flat = x.movedim(1, -1).flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    return flat.unflatten(0, (steps, -1)).contiguous()


def channels_first(flat_KBSC: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(K, B, S, C) seen as (K*B, *shape), shape (C, ...)."""
    merged = flat_KBSC.flatten(0, 1)
    if len(shape) == 1:
        return merged.squeeze(1)
    return merged.unflatten(1, shape[1:]).movedim(-1, 1)


def same_rows(*values_RC: Tensor) -> tuple[Tensor, ...]:
    """Parameters of one layer with as many rows as the one that has most: kernels read them all at one offset."""
    rows = max(len(value_RC) for value_RC in values_RC)
    return tuple(value_RC.expand(rows, -1).contiguous() for value_RC in values_RC)


def per_position(value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A neuron's parameter, broadcastable to ``shape``, as (1, C), or (S, C) where it varies over positions."""
    channels = shape[0]
    if value.numel() == 1:
        return value.detach().to(dtype).reshape(1, 1).expand(1, channels).contiguous()
    padded = value.detach().to(dtype).reshape((1,) * (len(shape) - value.dim()) + tuple(value.shape))
    if len(shape) == 1 or padded.shape[1:].numel() == 1:
        return padded.expand(channels, *padded.shape[1:]).reshape(1, channels).contiguous()
    return padded.expand(shape).flatten(1).T.contiguous()
