"""The scale with the least squared error of the rate for a given number of steps (Li et al. 2021, "A free lunch from ANN").

The rate after T steps of a constant current z is taken as r(z/S) = clip(floor(T z/S + v_init), 0, T)/T. S is searched on a grid
of fractions of the largest activation. Graded neurons have T (2^n - 1) counts for T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.convert.calibrators.rows import Per, from_rows, largest_of_rows, some_of_rows
from spikeprop.convert.shard import CalibrationShard
from spikeprop.runtime.checks import at_least_one

SAMPLES = 1 << 15  # values of a channel that are enough to find its threshold


@dataclass(frozen=True, kw_only=True)
class LeastError(LayerwiseCalibrator):
    """S = argmin of sum (S * r(a/S) - a)^2 over the activations a, for ``timesteps`` steps (Li et al. 2021).

    For conversion without training to a given T, in seconds, with weights and biases as they are.

    Attributes:
        timesteps: T.
        per: one threshold a layer, or one a channel.
        grid: number of fractions.
    """

    timesteps: int = 16
    per: Per = "channel"
    grid: int = 50

    def __post_init__(self) -> None:
        at_least_one(self, "timesteps", "grid")

    def activation_scale(self, data: LayerData) -> Tensor:
        search = GridSearch(data.counts(self.timesteps), self.per, self.grid)
        return data.limited(search.best(data, data.activation, data.activation))


@dataclass(frozen=True)
class GridSearch:
    """Search for the scale of least error.

    Attributes:
        counts: the largest sum that a neuron can send: T, or T times the largest payload.
        per: one scale a layer, or one a channel.
        grid: fractions of the largest target that are tried.
    """

    counts: int
    per: Per
    grid: int

    def best(self, data: LayerData, current: Tensor, target: Tensor) -> Tensor:
        """The positive scale with the least error, for currents and targets (B, C, ...): a number, or one a channel (C, 1, 1)."""
        found_R = self._least_error(data, current, target)
        return data.positive(from_rows(found_R, self.per, target, data.axis))

    def _least_error(self, data: LayerData, current: Tensor, target: Tensor) -> Tensor:
        """For each row, the scale S with the least squared error of S * r(current / S) against the target, (R,).

        In long rows only ``SAMPLES`` values are compared, evenly spaced over all images; the values of an image are adjacent.
        """
        shard, start = data.shard, float(data.neuron.v_init.mean())
        size = target.abs() if data.layer.both_signs else target
        largest_R, per_image = shard.largest(largest_of_rows(size, self.per, data.axis)), target[0].numel()
        if self.per == "channel":
            per_image //= target.shape[data.axis]
        count = shard.size(len(target) * per_image)
        compared = shard.local(torch.arange(0, count, max(1, count // SAMPLES)), per_image).to(target.device)
        current_RN, target_RN = (some_of_rows(values, self.per, compared, data.axis) for values in (current, target))
        if data.layer.both_signs:
            current_RN, target_RN = _one_sign(current_RN, target_RN)
        return least_of_grid(shard, largest_R, self.grid, lambda scale_GR: self._errors(current_RN, target_RN, scale_GR, start))

    def _errors(self, current_RN: Tensor, target_RN: Tensor, scale_GR: Tensor, start: float) -> Tensor:
        """Summed over each row, (G, R), in float64: the best scale must not depend on how sums are rounded."""
        if current_RN.device.type == "cpu" and current_RN.dtype in (torch.float32, torch.float64):
            return _errors_on_cpu(current_RN, target_RN, scale_GR, start, self.counts)
        found = []
        for scale_R1 in scale_GR.unsqueeze(2):
            rates_RN = quantised(current_RN / scale_R1, start, self.counts)
            found.append((rates_RN * scale_R1).sub_(target_RN).square_().sum(1, dtype=torch.float64))
        return torch.stack(found)


def _one_sign(current_RN: Tensor, target_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Rounding to nearest of both signs is that of the size, the target's sign being the current's."""
    sign_RN = torch.where(current_RN < 0, -1.0, 1.0).to(current_RN)
    return current_RN.abs(), target_RN * sign_RN


def _errors_on_cpu(current_RN: Tensor, target_RN: Tensor, scale_GR: Tensor, start: float, counts: int) -> Tensor:
    """The same in one pass over memory."""
    from spikeprop.convert.calibrators import grid_loops  # here, since it imports Numba
    from spikeprop.snn.engine.kernels.cpu import in_ranges

    current, target, scale = (x.to(current_RN).contiguous().numpy() for x in (current_RN, target_RN, scale_GR))
    error_GR = torch.empty(scale_GR.shape, dtype=torch.float64)
    found = error_GR.numpy()
    in_ranges(len(current), lambda a, b: grid_loops.errors(current, target, scale, start, counts, found, a, b))
    return error_GR


def least_of_grid(shard: CalibrationShard, largest_R: Tensor, grid: int, errors: Callable[[Tensor], Tensor]) -> Tensor:
    """For each row the scale of least error, (R,), of ``grid`` fractions of the largest.

    Args:
        shard: of this process.
        largest_R: for all images.
        grid: number of fractions G.
        errors: scales (G, R) to their errors for the images of this process (G, R).
    """
    fractions = torch.linspace(1, 0, grid + 1)[:-1].tolist()
    scale_GR = torch.stack([(largest_R * fraction).clamp(min=1e-12) for fraction in fractions])
    error_GR = shard.total(errors(scale_GR))
    best_R, least_R = largest_R.clone(), torch.full_like(error_GR[0], torch.inf)
    for scale_R, error_R in zip(scale_GR, error_GR, strict=True):
        better_R = error_R < least_R
        best_R, least_R = torch.where(better_R, scale_R, best_R), torch.where(better_R, error_R, least_R)
    return torch.where(largest_R > 0, best_R, largest_R)


def quantised(ratio: Tensor, start: float | Tensor, counts: int, low: int = 0) -> Tensor:
    """What a neuron sends of a constant current, in units of what it can, N counts: clip(floor(N r + v_init), low, N) / N."""
    return (ratio * counts + start).floor_().clamp_(low, counts) / counts
