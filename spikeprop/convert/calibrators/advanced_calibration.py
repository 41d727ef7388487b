"""Advanced calibration (Li et al. 2021, "A free lunch from ANN"): a fit of each layer, weights included.

The fit goes through the rate of a constant current z, clip(floor(T z/theta + v_init), 0, T)/T, with a straight-through gradient.
Unlike in the authors' code, weights, biases, thresholds and initial potentials are fitted together. Of graded neurons theta is
what the largest spike stands for, and T the counts, T (2^n - 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeprop.convert.calibrator import LayerData
from spikeprop.convert.calibrators.correction import SpikeCalibrator, add_bias, correct_bias
from spikeprop.convert.calibrators.least_error import quantised
from spikeprop.convert.shard import UNSHARDED, CalibrationShard
from spikeprop.snn import Layer, Neuron

PART_BYTES = 1 << 20  # of a layer's current that are fitted at once: its values, targets and gradients stay in the cache


@dataclass(frozen=True, kw_only=True)
class AdvancedCalibration(SpikeCalibrator):
    """Thresholds of least error, then a fit of weights, biases, thresholds and initial potentials to the ANN's activations.

    For one-bit spikes in few steps, where calibration may take minutes.

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
        self.layer, self.target, self.shard = layer, _channels_last(target), shard
        add_bias(layer, target.dim() - 2)
        self.trained: list[Tensor] = [p for p in layer.synapses.parameters() if p.requires_grad]
        self.current = BranchCurrents(layer, rates)
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
                self._add_gradients(some, 1 / (size * len(chosen) * self.target[0].numel()))
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
        fused, errors = self._fused(), torch.zeros((), dtype=torch.float64)
        for some in self._parts(torch.arange(len(self.target))):
            if fused is not None:
                errors += fused.error(self.current.trained(some), some)
            else:
                errors += (self._output(some) - self.target[some]).square().sum(dtype=torch.float64).cpu()
        return float(self.shard.total(errors.to(self.target.device)))

    def _add_gradients(self, some: Tensor, weight: float) -> None:
        """Gradients of ``weight`` times the squared error of some images, a few that stay in the cache at a time."""
        fused = self._fused()
        if fused is None:
            for part in self._parts(some):
                ((self._output(part) - self.target[part]).square().sum() * weight).backward()
            return
        for part in self._parts(some):
            total = self.current.trained(part)
            fused.error(total.detach(), part)  # leaves the gradient by the current in its place
            if total.requires_grad:
                total.backward(total.detach())
        for leaf, grad_C in ((self._full_scale(), fused.grad_full_C), (self.start, fused.grad_start_C)):
            grad = grad_C if leaf.numel() == len(grad_C) else grad_C.sum()
            leaf.backward(grad.to(leaf).reshape(leaf.shape))
        for parameter in self.trained:
            if parameter.grad is not None:
                parameter.grad *= 2 * weight

    def _parts(self, some: Tensor) -> Iterator[Tensor]:
        return iter(some.split(max(1, PART_BYTES // (self.target[0].numel() * self.target.element_size()))))

    def _fused(self) -> FusedError | None:
        """The loop in one pass over memory, where it knows the numbers; the definition is ``_output``."""
        if (
            self.neuron is None
            or self.layer.both_signs
            or self.target.device.type != "cpu"
            or self.target.dtype not in (torch.float32, torch.float64)
        ):
            return None
        if self.log_full.numel() not in (1, self.target.shape[1]):
            return None
        return FusedError(
            self.current.fixed_of(self.target), self.target, self._full_scale().detach(), self.start.detach(), self.counts
        )

    def _output(self, some: Tensor) -> Tensor:
        total = self.current(some)
        if self.neuron is None:
            return total
        full = self._full_scale()
        return full * _rate_through(total / full, self.start, self.counts, -1 if self.layer.both_signs else 0)

    def _full_scale(self) -> Tensor:
        full, limit = self.log_full.exp(), self.layer.ceiling
        return full if limit is None else torch.minimum(full, limit / self.layer.scale)

    def _store(self) -> None:
        for parameter in self.layer.synapses.parameters():
            parameter.grad = None
        if self.neuron is not None:
            self.neuron.set_full_scale(self._full_scale().detach())
            self.neuron.v_init = self.start.detach().clone()


class BranchCurrents:
    """The current of a layer for the fixed rates of its sources: what no trained weight acts on is computed once.

    Args:
        layer: with its biases.
        rates: of its sources, by name (B, ...).
    """

    @torch.no_grad()
    def __init__(self, layer: Layer, rates: dict[str, Tensor]):
        self._fixed: Tensor | None = None
        self._trained: list[tuple[Tensor, list[nn.Module]]] = []  # values (B, ...), and what is left to do with them
        for _, source, synapse in layer.branches():
            x, ops = rates[source], list(synapse)
            while ops and not any(p.requires_grad for p in ops[0].parameters()):
                x = ops.pop(0)(x)
            if ops:
                self._trained.append((_channels_last(x), ops))
            else:
                self._fixed = _channels_last(x if self._fixed is None else self._fixed + x)

    def trained(self, some: Tensor) -> Tensor:
        """The part that trained weights act on, of some images, in memory of its own."""
        total = None
        for values, ops in self._trained:
            x = values[some]
            for op in ops:
                x = op(x)
            total = x if total is None else total + x
        if total is None:
            assert self._fixed is not None
            return torch.zeros_like(self._fixed[some])
        return total

    def __call__(self, some: Tensor) -> Tensor:
        """The current of some images."""
        return self.trained(some) if self._fixed is None else self.trained(some) + self._fixed[some]

    def fixed_of(self, like: Tensor) -> Tensor:
        """The other part, of all images; zeros where there is none."""
        if self._fixed is None:
            self._fixed = torch.zeros_like(like)
        return self._fixed


class FusedError:
    """The squared error of a layer's output, and the gradients of half of it.

    Args:
        fixed: current (B, C, ...) that is no part of what ``error`` is given; channels last, like the target.
        target: (B, C, ...).
        full, start: what the largest spike stands for (of one bit the threshold), initial potentials: a number, or one a channel.
        counts: T of the rate, or T times the largest payload.
    """

    def __init__(self, fixed: Tensor, target: Tensor, full: Tensor, start: Tensor, counts: int):
        self._fixed_BSC, self._target_BSC, self._counts = _positions(fixed), _positions(target), counts
        rows = torch.broadcast_tensors(full, start, (start - 0.5) / counts)
        self._neurons_3C = torch.stack([row.to(target).reshape(-1).expand(target.shape[1]) for row in rows])
        self.grad_full_C, self.grad_start_C = torch.zeros(2, target.shape[1], dtype=torch.float64)

    def error(self, total: Tensor, some: Tensor) -> float:
        """Of some images' current, whose gradient is left in its place; adds to the other gradients."""
        from spikeprop.convert.calibrators import fit_loops  # here, since it imports Numba
        from spikeprop.snn.engine.kernels.cpu import in_ranges

        z_BSC = _positions(total)
        copied = z_BSC.contiguous()
        arrays = [x.numpy() for x in (copied, self._fixed_BSC, self._target_BSC, some, self._neurons_3C)]

        def work(first: int, last: int) -> Any:
            found_3C = np.zeros(self._neurons_3C.shape)
            fit_loops.gradients(*arrays, self._counts, found_3C, first, last)
            return found_3C

        full_C, start_C, error_C = torch.from_numpy(sum(in_ranges(len(copied), work)))
        self.grad_full_C += full_C
        self.grad_start_C += start_C
        if copied.data_ptr() != total.data_ptr():
            z_BSC.copy_(copied)
        return float(error_C.sum())


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def _positions(x: Tensor) -> Tensor:
    """(B, C, ...) seen as (B, S, C)."""
    return x.flatten(2).transpose(1, 2) if x.dim() > 2 else x.unsqueeze(1)


def _rate_through(ratio: Tensor, start: Tensor, counts: int, low: int = 0) -> Tensor:
    """The rate of a constant current, ``low`` to 1; its gradient is that of the ramp that the staircase follows."""
    ramp = (ratio + (start - 0.5) / counts).clamp(low, 1)
    return ramp + (quantised(ratio.detach(), start.detach(), counts, low * counts) - ramp.detach())
