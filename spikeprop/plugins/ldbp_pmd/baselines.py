"""Baselines of the learned receiver: dispersion compensation, digital backpropagation by FFT, and a 2x2 equaliser after either.

The equaliser has T/2-spaced complex taps after the matched filter and knows the training symbols. ``lms`` adapts it symbol by
symbol (normalised LMS); ``least_squares`` computes the limit of LMS without the noise of its steps. Both are lumped: they are
applied after all steps of the compensation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.fibre import Fibre
from spikeprop.plugins.ldbp_pmd.link import kerr_phase
from spikeprop.plugins.ldbp_pmd.receiver import backward_steps
from spikeprop.plugins.ldbp_pmd.signals import SAMPLES_PER_SYMBOL


@dataclass(frozen=True, kw_only=True)
class EqualizerSettings:
    """Settings of the lumped equaliser.

    Attributes:
        taps: number of T/2-spaced taps, odd.
        step: step size of normalised LMS in the first pass, in (0, 2); each further pass halves it, because the noise of
            steps adds about step / 2 of the error.
        passes: number of passes over the training symbols.

    """

    taps: int = 15
    step: float = 0.05
    passes: int = 5

    def __post_init__(self) -> None:
        if self.taps < 1 or self.taps % 2 == 0:
            raise ValueError(f"taps is {self.taps}; the equaliser has an odd number, at least 1")
        if not 0 < self.step < 2:
            raise ValueError(f"step is {self.step}; normalised LMS is stable for 0 < step < 2")
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}; it must be at least 1")


def undo_dispersion(samples: Tensor, fibre: Fibre, rate: float) -> Tensor:
    """Compensate the dispersion of the complete link exactly: (B, P, N) samples to samples."""
    return _disperse(samples, fibre, -fibre.length, rate)


def backpropagate(samples: Tensor, fibre: Fibre, steps_per_span: int, rate: float) -> Tensor:
    """Digital backpropagation with the steps of ``LearnedReceiver``, but exact dispersion: (B, P, N) samples to samples."""
    for length, kerr in zip(*backward_steps(fibre, steps_per_span, samples.shape[1])):
        samples = kerr_phase(_disperse(samples, fibre, -length, rate), kerr)
    return samples


def _disperse(samples: Tensor, fibre: Fibre, length: float, rate: float) -> Tensor:
    omega = 2 * math.pi * torch.fft.fftfreq(samples.shape[-1], 1 / rate, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(omega), fibre.beta2 / 2 * length * omega.square())
    return torch.fft.ifft(torch.fft.fft(samples) * turn.to(samples))


def windows(matched: Tensor, taps: int) -> Tensor:
    """Samples around each symbol of a periodic block: (B, P, 2 K) to (B, K, P * taps)."""
    shifted = torch.stack([torch.roll(matched, t - taps // 2, -1) for t in range(taps)], -1)
    return shifted[:, :, ::SAMPLES_PER_SYMBOL].transpose(1, 2).flatten(2)


def equalize(matched: Tensor, weights: Tensor) -> Tensor:
    """Equalised symbols (B, P, K).

    Args:
        matched: samples (B, P, 2 K) after the matched filter.
        weights: taps (P, P * taps).

    """
    taps = weights.shape[1] // matched.shape[1]
    return torch.einsum("bkw,pw->bpk", windows(matched, taps), weights)


def lms(matched: Tensor, symbols: Tensor, settings: EqualizerSettings) -> Tensor:
    """Weights (P, P * taps) after normalised LMS over all symbols, block after block, starting with the identity."""
    inputs = windows(matched, settings.taps).flatten(0, 1).to(torch.complex128).numpy()
    wanted = symbols.transpose(1, 2).flatten(0, 1).to(torch.complex128).contiguous().numpy()
    count = symbols.shape[1]
    weights = np.zeros((count, inputs.shape[1]), dtype=np.complex128)
    for p in range(count):
        weights[p, p * settings.taps + settings.taps // 2] = 1
    for k in range(settings.passes):
        _lms(inputs, wanted, weights, settings.step / 2**k)
    return torch.from_numpy(weights).to(symbols)


def least_squares(matched: Tensor, symbols: Tensor, taps: int) -> Tensor:
    """Weights (P, P * taps) with the least squared error over all symbols."""
    inputs = windows(matched, taps).flatten(0, 1).to(torch.complex128)
    wanted = symbols.transpose(1, 2).flatten(0, 1).to(torch.complex128)
    return torch.linalg.solve(inputs.mH @ inputs, inputs.mH @ wanted).T.to(symbols)


_jit: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@_jit
def _lms(inputs, wanted, weights, step):  # pyright: ignore
    count, width = weights.shape
    for n in range(len(inputs)):
        u = inputs[n]
        size = 0.0
        for j in range(width):
            size += u[j].real ** 2 + u[j].imag ** 2
        for p in range(count):
            error = wanted[n, p]
            for j in range(width):
                error -= weights[p, j] * u[j]
            error *= step / size
            for j in range(width):
                weights[p, j] += error * u[j].conjugate()
