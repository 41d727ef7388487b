"""The scale with the least squared error of the rate for a given number of steps (Li et al. 2021, "A free lunch from ANN").

The rate after T steps of a constant current z is taken as r(z/S) = clip(floor(T z/S + v_init), 0, T)/T. S is searched on a grid
of fractions of the largest activation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.convert.calibrators.rows import Per, from_rows, rows
from spikeprop.runtime.checks import at_least_one

SAMPLES = 1 << 15  # values of a channel that are enough to find its threshold


@dataclass(frozen=True, kw_only=True)
class LeastError(LayerwiseCalibrator):
    """S = argmin of sum (S * r(a/S) - a)^2 over the activations a, for ``timesteps`` steps (Li et al. 2021).

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
        search = GridSearch(self.timesteps, self.per, self.grid)
        return data.limited(search.best(data, data.activation, data.activation))


@dataclass(frozen=True)
class GridSearch:
    """Search for the scale of least error.

    Attributes:
        timesteps: T of the rate.
        per: one scale a layer, or one a channel.
        grid: fractions of the largest target that are tried.
    """

    timesteps: int
    per: Per
    grid: int

    def best(self, data: LayerData, current: Tensor, target: Tensor) -> Tensor:
        """The positive scale with the least error, for currents and targets (B, C, ...): a number, or one a channel (C, 1, 1)."""
        found_R = self._least_error(data, rows(current, self.per), rows(target, self.per), len(target))
        return data.positive(from_rows(found_R, self.per, target))

    def _least_error(self, data: LayerData, current_RN: Tensor, target_RN: Tensor, images: int) -> Tensor:
        """For each row, the scale S with the least squared error of S * r(current / S) against the target, (R,).

        In long rows only ``SAMPLES`` values are compared, evenly spaced over all images; the values of an image are adjacent.
        """
        shard, start = data.shard, float(data.neuron.v_init.mean())
        largest_R, count = shard.largest(target_RN.amax(1)), shard.size(target_RN.shape[1])
        compared = shard.local(torch.arange(0, count, max(1, count // SAMPLES)), target_RN.shape[1] // images)
        current_RN, target_RN = current_RN[:, compared], target_RN[:, compared]
        fractions = torch.linspace(1, 0, self.grid + 1)[:-1].tolist()
        scale_GR = torch.stack([(largest_R * fraction).clamp(min=1e-12) for fraction in fractions])
        error_GR = shard.total(self._errors(current_RN, target_RN, scale_GR, start))
        best_R, least_R = largest_R.clone(), torch.full_like(error_GR[0], torch.inf)
        for scale_R, error_R in zip(scale_GR, error_GR, strict=True):
            better_R = error_R < least_R
            best_R, least_R = torch.where(better_R, scale_R, best_R), torch.where(better_R, error_R, least_R)
        return torch.where(largest_R > 0, best_R, largest_R)

    def _errors(self, current_RN: Tensor, target_RN: Tensor, scale_GR: Tensor, start: float) -> Tensor:
        """Summed over each row, (G, R), in float64: the best scale must not depend on how sums are rounded."""
        if current_RN.device.type == "cpu" and current_RN.dtype in (torch.float32, torch.float64):
            return _errors_on_cpu(current_RN, target_RN, scale_GR, start, self.timesteps)
        found = []
        for scale_R1 in scale_GR.unsqueeze(2):
            rates_RN = quantised(current_RN / scale_R1, start, self.timesteps)
            found.append((rates_RN * scale_R1).sub_(target_RN).square_().sum(1, dtype=torch.float64))
        return torch.stack(found)


def _errors_on_cpu(current_RN: Tensor, target_RN: Tensor, scale_GR: Tensor, start: float, timesteps: int) -> Tensor:
    """The same in one pass over memory."""
    from spikeprop.convert.calibrators import grid_loops  # here, since it imports Numba
    from spikeprop.snn.engine.kernels.cpu import in_ranges

    current, target, scale = (x.to(current_RN).contiguous().numpy() for x in (current_RN, target_RN, scale_GR))
    error_GR = torch.empty(scale_GR.shape, dtype=torch.float64)
    found = error_GR.numpy()
    in_ranges(len(current), lambda a, b: grid_loops.errors(current, target, scale, start, timesteps, found, a, b))
    return error_GR


def quantised(ratio: Tensor, start: float | Tensor, timesteps: int) -> Tensor:
    """Rate after ``timesteps`` steps of a constant current, in units of the threshold: clip(floor(T r + v_init), 0, T) / T."""
    return (ratio * timesteps + start).floor_().clamp_(0, timesteps) / timesteps
