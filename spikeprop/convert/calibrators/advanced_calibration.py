"""Advanced calibration (Li et al. 2021, "A free lunch from ANN"): a fit of each layer, weights included.

The fit goes through the rate of a constant current z, clip(floor(T z/theta + v_init), 0, T)/T, with a straight-through gradient.
Unlike in the authors' code, weights, biases, thresholds and initial potentials are fitted together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.activations import current
from spikeprop.convert.calibrator import LayerData
from spikeprop.convert.calibrators.correction import SpikeCalibrator, add_bias, correct_bias
from spikeprop.convert.calibrators.least_error import quantised
from spikeprop.convert.shard import UNSHARDED, CalibrationShard
from spikeprop.snn import Layer, Neuron


@dataclass(frozen=True, kw_only=True)
class AdvancedCalibration(SpikeCalibrator):
    """Thresholds of least error, then a fit of weights, biases, thresholds and initial potentials to the ANN's activations.

    The fit minimises the squared error of theta * rate against the activation by Adam, ``iterations`` steps on ``batch_size``
    images, each number moving by about ``step`` of its tensor's size a step at first, and less and less (cosine). The mean error
    that is left in each channel's true rates is added to the biases. A fit that does not lower the error is undone.

    Attributes:
        iterations, batch_size, step: of the fit.
    """

    iterations: int = 300
    batch_size: int = 64
    step: float = 0.01

    def correct(self, data: LayerData) -> None:
        with torch.enable_grad():
            fit = LayerFit(data.layer, data.target, data.spikes.rates(data.layer), self.timesteps, data.shard)
            fit.run(self.iterations, self.batch_size, self.step)
        if isinstance(data.layer.neuron, Neuron):
            correct_bias(data)


class LayerFit:
    """The fit of one layer.

    Args:
        layer: with its threshold.
        target: the ANN's activation, for the output its scores, in units of the layer's potential (B, ...).
        rates: of the layer's sources, by name (B, ...).
        timesteps: T of the rate.
        shard: which of all images the values are for.
    """

    def __init__(
        self,
        layer: Layer,
        target: Tensor,
        rates: dict[str, Tensor],
        timesteps: int,
        shard: CalibrationShard = UNSHARDED,
    ):
        self.layer, self.target, self.rates, self.shard = layer, target, rates, shard
        add_bias(layer)
        self.trained: list[Tensor] = [p for p in layer.synapses.parameters() if p.requires_grad]
        self.neuron = layer.neuron if isinstance(layer.neuron, Neuron) else None
        if self.neuron is not None:
            self.counts = timesteps * self.neuron.payload
            self.log_full = self.neuron.full_scale.log().requires_grad_()
            start = self.neuron.v_init.expand_as(self.log_full)
            self.start = start.clone().requires_grad_()
            self.trained += [self.log_full, self.start]

    def run(self, iterations: int, batch_size: int, step: float) -> None:
        """Minimise, and leave the result in the layer."""
        if iterations == 0 or not self.trained:
            return
        sizes = [max(float(p.detach().square().mean().sqrt()), 1e-3) for p in self.trained]
        groups = [{"params": [p], "lr": step * size} for p, size in zip(self.trained, sizes)]
        if self.neuron is not None:
            groups[-2]["lr"] = groups[-1]["lr"] = step
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        draws = torch.Generator().manual_seed(0)
        images = self.shard.size(len(self.target))
        # A target of zeros, such as that of a side of an activation which no image reaches, has no size to relate the error to.
        size = float(self.shard.mean(self.target.square().reshape(-1), 0)) or 1.0
        before, first = self.error(), [p.detach().clone() for p in self.trained]
        for _ in range(iterations):
            chosen = torch.randperm(images, generator=draws)[:batch_size]
            some = self.shard.local(chosen, 1)
            optimizer.zero_grad()
            if len(some):
                loss = (self._output(some) - self.target[some]).square().sum()
                (loss / (size * len(chosen) * self.target[0].numel())).backward()
            self.shard.processes.sum_gradients(self.trained, dtype=torch.float64)
            optimizer.step()
            schedule.step()
        # The straight-through gradient is not the staircase's own: few steps can mislead it. NaN is no improvement either.
        if not self.error() <= before:
            for parameter, value in zip(self.trained, first):
                parameter.data.copy_(value)
        self._store()

    @torch.no_grad()
    def error(self) -> float:
        """Squared error, summed over all images."""
        batches = torch.arange(len(self.target)).split(64)
        errors = [(self._output(some) - self.target[some]).square().sum(dtype=torch.float64) for some in batches]
        return float(self.shard.total(torch.stack(errors).sum()))

    def _output(self, some: Tensor) -> Tensor:
        total = current(self.layer, {name: rate[some] for name, rate in self.rates.items()})
        if self.neuron is None:
            return total
        full = self._full_scale()
        return full * _rate_through(total / full, self.start, self.counts)

    def _full_scale(self) -> Tensor:
        full, limit = self.log_full.exp(), self.layer.ceiling
        return full if limit is None else torch.minimum(full, limit / self.layer.scale)

    def _store(self) -> None:
        for parameter in self.layer.synapses.parameters():
            parameter.grad = None
        if self.neuron is not None:
            self.neuron.set_full_scale(self._full_scale().detach())
            self.neuron.v_init = self.start.detach().clone()


def _rate_through(ratio: Tensor, start: Tensor, counts: int) -> Tensor:
    """The rate of a constant current; its gradient is that of the ramp that the staircase follows."""
    ramp = (ratio + (start - 0.5) / counts).clamp(0, 1)
    return ramp + (quantised(ratio.detach(), start.detach(), counts) - ramp.detach())
