"""Numba loop that counts packed spikes over time. Suffix legend: T steps, N = B*S positions of a batch, C channels, W words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, uint32
from torch import Tensor

from spikeprop.snn.engine.kernels.cpu import in_ranges
from spikeprop.snn.engine.kernels.words import BITS, unpack

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")


def spike_counts(words_TBSW: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Number of spikes of each neuron over all steps, (B, S, C)."""
    if words_TBSW.device.type != "cpu":
        return torch.stack([unpack(words_BSW, channels, dtype) for words_BSW in words_TBSW]).sum(0)
    out_BSC = torch.empty(*words_TBSW.shape[1:3], channels, dtype=dtype)
    words, counts = words_TBSW.flatten(1, 2).numpy().view(np.uint32), out_BSC.flatten(0, 1).numpy()
    in_ranges(len(counts), lambda first, last: _count(words, counts, first, last))
    return out_BSC


def signed_counts(small_TBSC: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over time, (B, S, C), of spikes (T, B, S, C) of int8."""
    out_BSC = torch.empty(small_TBSC.shape[1:], dtype=dtype, device=small_TBSC.device)
    if small_TBSC.device.type != "cpu":
        return torch.sum(small_TBSC, 0, dtype=dtype, out=out_BSC)
    small, counts = small_TBSC.flatten(1, 2).numpy(), out_BSC.flatten(0, 1).numpy()
    in_ranges(len(counts), lambda first, last: _add_up(small, counts, first, last))
    return out_BSC


@_jit
def _add_up(small_TNC, counts_NC, first, last):  # type: ignore[no-untyped-def]
    """Rows of 64 neurons or so stay in registers."""
    for n in range(first, last):
        counts = counts_NC[n]
        counts[:] = 0
        for t in range(small_TNC.shape[0]):
            small = small_TNC[t, n]
            for c in range(counts.shape[0]):
                counts[c] += small[c]


@_jit
def _count(words_TNW, counts_NC, first, last):  # type: ignore[no-untyped-def]
    bits, found = np.arange(BITS).astype(np.uint32), np.empty(BITS, np.uint32)
    for n in range(first, last):
        for w in range(words_TNW.shape[2]):
            found[:] = uint32(0)
            for t in range(words_TNW.shape[0]):
                word = words_TNW[t, n, w]
                for j in range(BITS):
                    found[j] += (word >> bits[j]) & uint32(1)
            for j in range(min(BITS, counts_NC.shape[1] - w * BITS)):
                counts_NC[n, w * BITS + j] = found[j]
