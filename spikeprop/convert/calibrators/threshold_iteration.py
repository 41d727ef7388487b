"""Thresholds in closed form from the mean and the deviation of each channel's pre-activation: threshold iteration.

For x ~ N(mu, sigma^2), sent as Q(x) = q m with m = clip(round(x/q), 0, b), the expected squared error is least where k = 1 in

    k = E[x Q] / E[Q^2] = sum_i (mu erfc z_i + sigma sqrt(2/pi) exp(-z_i^2)) / (q sum_i (2i - 1) erfc z_i),
    z_i = ((i - 1/2) q - mu) / (sqrt2 sigma),    i = 1..b,    b = T (2^levels - 1)

(Huang et al. 2025, "Differential Coding for Training-Free ANN-to-SNN Conversion", ICML). The authors iterate q <- k q from the
largest activation. That ends in the minimum that is nearest, slowly where b is large; here the error, in the same closed form

    E[(relu(x) - Q)^2] = E[relu(x)^2] - 2 E[x Q] + E[Q^2],

is compared on a grid, and k = 1 is found by bisection beside the least. Suffix legend: C channels, G grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.convert.calibrators.rows import from_rows
from spikeprop.errors import ConversionError
from spikeprop.runtime.checks import at_least_one

GRID = 64  # ranges that are compared, evenly spaced in the logarithm, from LEAST to 1 of FARTHEST
LEAST = 0.02
FARTHEST = 6.0  # deviations beyond the mean; a channel whose mean lies so far below 0 is taken as never active
HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class ThresholdIteration(LayerwiseCalibrator):
    """S of each channel by the mean and deviation of its pre-activations, as if they were normal (Huang et al. 2025).

    For a fast calibration of large networks, in one pass over the images.

    It needs one pass over the images and no search over activations: a few seconds for any network. Neurons start at half a
    spike (``v_init=0.5``). A channel without deviation gets its mean; one that is never active, the layer's largest.

    Attributes:
        timesteps: T, steps that the network is to run for.
    """

    timesteps: int = 16

    def __post_init__(self) -> None:
        at_least_one(self, "timesteps")

    def activation_scale(self, data: LayerData) -> Tensor:
        if (data.neuron.v_init != 0.5).any():
            raise ConversionError(
                f"layer {data.name!r} starts at v_init={float(data.neuron.v_init.mean()):g}; ThresholdIteration is for neurons "
                "that round: give the neuron v_init=0.5"
            )
        total = data.total.movedim(data.axis, 1)
        mean_C = data.shard.channel_mean(total)
        deviation_C = data.shard.channel_mean((total - from_rows(mean_C, "channel", total)).square_()).sqrt()
        scale_C = best_range(mean_C, deviation_C, data.counts(self.timesteps), data.layer.both_signs).to(data.total)
        return data.limited(data.positive(from_rows(scale_C, "channel", data.total, data.axis)))


def best_range(mean_C: Tensor, deviation_C: Tensor, counts: int, both_signs: bool = False) -> Tensor:
    """The largest value b q that has the least expected squared error, (C,), in float64; 0 for what is never active.

    Args:
        mean_C, deviation_C: of normally distributed pre-activations.
        counts: b.
        both_signs: of neurons that stand for the identity, m = clip(round(x/q), -b, b).
    """
    mean_C, deviation_C = mean_C.double(), deviation_C.double()
    spread_C = deviation_C.clamp(min=torch.finfo(torch.float64).tiny)
    far_C = (mean_C.abs() if both_signs else mean_C.clamp(min=0)) + FARTHEST * spread_C

    def moments(range_C: Tensor) -> tuple[Tensor, Tensor]:
        found = _moments(mean_C, spread_C, range_C, counts)
        mirrored = _moments(-mean_C, spread_C, range_C, counts) if both_signs else (0.0, 0.0)
        return found[0] + mirrored[0], found[1] + mirrored[1]

    share_G = torch.logspace(math.log10(LEAST), 0, GRID, dtype=torch.float64, device=mean_C.device)
    error_GC = torch.stack([square_C - 2 * product_C for product_C, square_C in (moments(s * far_C) for s in share_G)])
    best_C = error_GC.argmin(0)
    low_C, high_C = (share_G[(best_C + side).clamp(0, GRID - 1)] * far_C for side in (-1, 1))
    for _ in range(HALVINGS):
        middle_C = (low_C + high_C) / 2
        product_C, square_C = moments(middle_C)
        larger_C = product_C > square_C  # k > 1
        low_C, high_C = torch.where(larger_C, middle_C, low_C), torch.where(larger_C, high_C, middle_C)
    size_C = mean_C.abs() if both_signs else mean_C
    found_C = torch.where(size_C > FARTHEST * 1e6 * deviation_C, size_C, (low_C + high_C) / 2)  # hardly a deviation
    return torch.where(size_C > -FARTHEST * deviation_C, found_C, 0.0)


def _moments(mean_C: Tensor, deviation_C: Tensor, range_C: Tensor, counts: int) -> tuple[Tensor, Tensor]:
    """E[x Q] and E[Q^2]: sums of the tails above each border of rounding, which all have one sign."""
    unit_C = range_C / counts
    product_C, square_C = torch.zeros_like(mean_C), torch.zeros_like(mean_C)
    for i_I in torch.arange(1, counts + 1, dtype=torch.float64, device=mean_C.device).split(256):
        z_IC = ((i_I[:, None] - 0.5) * unit_C - mean_C) / (math.sqrt(2) * deviation_C)
        tail_IC = torch.special.erfc(z_IC) / 2
        beyond_IC = mean_C * tail_IC + deviation_C / math.sqrt(2 * math.pi) * (-z_IC.square()).exp()
        product_C += unit_C * beyond_IC.sum(0)
        square_C += unit_C.square() * ((2 * i_I[:, None] - 1) * tail_IC).sum(0)
    return product_C, square_C
