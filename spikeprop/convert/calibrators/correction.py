"""Calibrators that correct a network with its own spikes, layer by layer (Li et al. 2021, "A free lunch from ANN").

Each layer is looked at while the layers below it, corrected already, fire as they will when the network runs for ``timesteps``
steps; so it makes up for their errors as well as for its own. The light way changes thresholds, biases and initial potentials;
the advanced way also fits weights to the ANN's activations. Neurons run without leak meanwhile.

Differences from the authors' code: thresholds are searched on the currents that spikes give, not on the ANN's; a fit takes
weights, biases, thresholds and initial potentials together, through the rate of a constant current with a straight-through
gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.convert.calibrate import (
    Per,
    ThresholdCalibrator,
    Units,
    by_channel,
    check_grid,
    check_steps,
    limited,
    positive,
)
from spikeprop.convert.calibrators.statistics import Search, best_worth, quantised
from spikeprop.convert.encoded import EncodedInput, own_draws
from spikeprop.convert.graph import activations, currents, forget
from spikeprop.convert.part import BLOCK, WHOLE, Part
from spikeprop.runtime.progress import bar
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import INPUT, Layer, Neuron, SpikingNetwork


@dataclass(frozen=True)
class CalibratedLayer:
    """A layer that is being calibrated.

    Attributes:
        target: the ANN's activation, or for the output its scores, in units of the layer's potential (B, ...).
        rates: of the layer's sources, by name (B, ...).
        part: which of all images they are of.
    """

    name: str
    stage: Layer
    target: Tensor
    rates: dict[str, Tensor]
    part: Part = WHOLE


@dataclass(frozen=True, kw_only=True)
class SpikeCalibrator(ThresholdCalibrator):
    """Walks through the layers, each seeing the spikes of those below.

    Attributes:
        timesteps: steps that the network is to run for.
        per: one threshold a layer, or one a channel.
        grid: fractions of the largest activation that are tried as threshold.
        delay: choose from which step on the output is read (``delay_readout``); signed neurons need no settling and get none.
    """

    timesteps: int = 16
    per: Per = "channel"
    grid: int = 50
    delay: bool = True

    def __post_init__(self) -> None:
        check_steps(self.timesteps, "a rate needs")
        check_grid(self.grid)

    @property
    def joins(self) -> bool:
        return True

    @torch.no_grad()
    def calibrate(self, network: SpikingNetwork, x: Tensor, part: Part = WHOLE) -> dict[str, Tensor]:
        thresholds = {}
        for layer, spikes in self._layers(network, x, part):
            neuron = layer.stage.neuron
            self.adjust(layer, spikes)
            if isinstance(neuron, Neuron):
                thresholds[layer.name] = neuron.v_threshold.detach().clone()
            elif self.delay and not any(n.signed for n in network.neurons().values()):
                delay_readout(network, x, layer.target, self.timesteps, part)
        return thresholds

    @abstractmethod
    def adjust(self, layer: CalibratedLayer, spikes: Spikes) -> None:
        """Change one layer whose threshold is set; ``spikes`` runs it."""

    def _layers(self, network: SpikingNetwork, x: Tensor, part: Part) -> Iterator[tuple[CalibratedLayer, Spikes]]:
        """The layers that can be changed, in order: those of neurons, and the output."""
        units, spikes = Units(network, x), Spikes(network, x, self.timesteps, part)
        rates = {INPUT: spikes.input_rate()}
        for name, stage, activation in bar_over(activations(network, x), len(network.layers), shown=part.processes.rank == 0):
            units.fold(stage)
            layer = CalibratedLayer(name, stage, activation / stage.scale, rates, part)
            if stage.dynamics.passes_on:
                units.pass_on(name, stage)
            elif isinstance(stage.neuron, Neuron):
                units.settle(name, stage, self._worth(layer, stage.neuron))
                yield layer, spikes
                units.settle(name, stage, stage.neuron.v_threshold * stage.scale)
            else:
                yield layer, spikes
                return
            rates[name] = spikes.rate(name)
            forget(network, rates, name)

    def _worth(self, layer: CalibratedLayer, neuron: Neuron) -> Tensor:
        """The threshold of least error for the currents that spikes give."""
        current = currents(layer.stage, layer.rates)
        search = Search(float(neuron.v_init.mean()), self.timesteps, self.grid)
        theta = positive(layer.name, best_worth(current, layer.target, self.per, search, layer.part))
        return limited(layer.stage, theta * layer.stage.scale)


class Spikes:
    """What the layers of a network fire, made in order and kept packed.

    Args:
        network: in evaluation mode.
        x: images.
        timesteps: steps.
        part: which of all images they are.
    """

    def __init__(self, network: SpikingNetwork, x: Tensor, timesteps: int, part: Part):
        from spikeprop.snn.engine.layerwise import LayerwiseRun  # here, since it brings Numba

        self.timesteps, self.encoded = timesteps, EncodedInput(network.encoder, x, part)
        self.layers = LayerwiseRun(network, x, timesteps, self.encoded)

    def input_rate(self) -> Tensor:
        """Mean of the encoded input over the steps (B, ...)."""
        return self.encoded(0, self.timesteps).mean(0)

    def rate(self, name: str) -> Tensor:
        """Fire a layer, again if it was changed, and give its spikes a step (B, ...)."""
        self.layers.fire(name)
        return self.layers.rate(name)


@dataclass(frozen=True, kw_only=True)
class LightCalibration(SpikeCalibrator):
    """Thresholds of least error, then biases and initial potentials that make up for the mean error of the rates.

    Attributes:
        bias: correct biases, by channel.
        potential: correct initial potentials, by neuron.
    """

    bias: bool = True
    potential: bool = False

    def adjust(self, layer: CalibratedLayer, spikes: Spikes) -> None:
        if not isinstance(layer.stage.neuron, Neuron):
            return
        if self.bias:
            _correct_bias(layer, spikes)
        if self.potential:
            shift_potential(layer.stage.neuron, layer.part.mean(_error(layer, spikes), 0), self.timesteps)


@dataclass(frozen=True, kw_only=True)
class AdvancedCalibration(SpikeCalibrator):
    """Thresholds of least error, then a fit of weights, biases, thresholds and initial potentials to the ANN's activations.

    The fit minimises the squared error of theta * rate against the activation by Adam, ``iterations`` steps on ``batch_size``
    images, each number moving by about ``step`` of its tensor's size a step at first, and less and less (cosine). The mean error
    that is left in each channel's true rates goes into the biases. A fit that does not lower the error is taken back.

    Attributes:
        iterations, batch_size, step: of the fit.
    """

    iterations: int = 300
    batch_size: int = 64
    step: float = 0.01

    def adjust(self, layer: CalibratedLayer, spikes: Spikes) -> None:
        with torch.enable_grad():
            _Fit(layer, self.timesteps).run(self.iterations, self.batch_size, self.step)
        if layer.stage.neuron is not None:
            _correct_bias(layer, spikes)


class _Fit:
    """The fit of one layer."""

    def __init__(self, layer: CalibratedLayer, timesteps: int):
        self.layer, self.timesteps = layer, timesteps
        self.neuron = layer.stage.neuron if isinstance(layer.stage.neuron, Neuron) else None
        add_bias(layer.stage)
        self.trained: list[Tensor] = [p for p in layer.stage.synapses.parameters() if p.requires_grad]
        if self.neuron is not None:
            self.log_theta = self.neuron.v_threshold.detach().log().requires_grad_()
            start = self.neuron.v_init.expand_as(self.neuron.v_threshold)
            self.start = start.clone().requires_grad_()
            self.limit = layer.stage.ceiling
            self.trained += [self.log_theta, self.start]

    def run(self, iterations: int, batch_size: int, step: float) -> None:
        """Minimise, and leave the result in the stage."""
        if iterations == 0 or not self.trained:
            return
        sizes = [max(float(p.detach().square().mean().sqrt()), 1e-3) for p in self.trained]
        groups = [{"params": [p], "lr": step * size} for p, size in zip(self.trained, sizes)]
        if self.neuron is not None:
            groups[-2]["lr"] = groups[-1]["lr"] = step
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        draws = torch.Generator().manual_seed(0)
        part, target = self.layer.part, self.layer.target
        images = part.size(len(target))
        size = float(part.mean(target.square().reshape(-1), 0))
        before, first = self._error(), [p.detach().clone() for p in self.trained]
        for _ in range(iterations):
            chosen = torch.randperm(images, generator=draws)[:batch_size]
            some = part.own(chosen, 1)
            optimizer.zero_grad()
            if len(some):
                loss = (self._output(some) - target[some]).square().sum() / (size * len(chosen) * target[0].numel())
                loss.backward()
            part.processes.sum_gradients(self.trained, dtype=torch.float64)
            optimizer.step()
            schedule.step()
        if self._error() > before:  # the straight-through gradient is not the staircase's own: few steps can mislead it
            for parameter, value in zip(self.trained, first):
                parameter.data.copy_(value)
        self._settle()

    @torch.no_grad()
    def _error(self) -> float:
        """Squared error, summed over all images."""
        batches = torch.arange(len(self.layer.target)).split(64)
        errors = [(self._output(some) - self.layer.target[some]).square().sum(dtype=torch.float64) for some in batches]
        return float(self.layer.part.total(torch.stack(errors).sum()))

    def _output(self, some: Tensor) -> Tensor:
        current = currents(self.layer.stage, {name: rate[some] for name, rate in self.layer.rates.items()})
        if self.neuron is None:
            return current
        theta = self._theta()
        return theta * rate_through(current / theta, self.start, self.timesteps)

    def _theta(self) -> Tensor:
        theta = self.log_theta.exp()
        return theta if self.limit is None else torch.minimum(theta, self.limit / self.layer.stage.scale)

    def _settle(self) -> None:
        for parameter in self.layer.stage.synapses.parameters():
            parameter.grad = None
        if self.neuron is not None:
            self.neuron.set_threshold(self._theta().detach())
            self.neuron.v_init = self.start.detach().clone()


def rate_through(ratio: Tensor, start: Tensor, timesteps: int) -> Tensor:
    """The rate of a constant current, with the gradient of its ramp: the steps of the staircase let it through."""
    ramp = (ratio + (start - 0.5) / timesteps).clamp(0, 1)
    return ramp + (quantised(ratio.detach(), start.detach(), timesteps) - ramp.detach())


def _correct_bias(layer: CalibratedLayer, spikes: Spikes) -> None:
    """Add each channel's mean error to its current."""
    op = add_bias(layer.stage)
    if op is not None:
        op.bias.data.add_(layer.part.mean(by_channel(_error(layer, spikes)), 1).to(op.bias))


def _error(layer: CalibratedLayer, spikes: Spikes) -> Tensor:
    """What the true rates miss of the target (B, ...)."""
    return layer.target - layer.stage.dynamics.spike_size * spikes.rate(layer.name)


def add_bias(stage: Layer) -> Any:
    """The last layer of a branch, whose bias acts on all channels, given one of zeros where it has none; None without one."""
    last = [next(reversed(list(synapse)), None) for _, _, synapse in stage.branches()]
    for op in sorted((op for op in last if isinstance(op, nn.Conv2d | nn.Linear)), key=lambda op: op.bias is None):
        if op.bias is None:
            op.bias = nn.Parameter(op.weight.new_zeros(len(op.weight)).detach(), op.weight.requires_grad)
        return op
    return None


def shift_potential(neuron: Neuron, error: Tensor, timesteps: int) -> None:
    """Start each neuron where the mean error of its rate would be made up for within ``timesteps`` steps."""
    neuron.v_init = (neuron.v_init + timesteps * error.to(neuron.v_init) / neuron.v_threshold).clamp(-1, 1)


@torch.no_grad()
def delay_readout(network: SpikingNetwork, x: Tensor, scores: Tensor, timesteps: int, part: Part = WHOLE) -> int:
    """Choose the delay of the readout for runs of ``timesteps`` steps: where the mean output is nearest to the ANN's scores.

    Args:
        network: calibrated, in evaluation mode; its ``readout`` is set.
        x: images (B, ...).
        scores: of the ANN, in units of the output's potential (B, K).
        timesteps: T; at most three quarters of it are passed over.
        part: which of all images they are.

    Returns:
        the number of steps passed over; 0 keeps the whole sum. Distance is cross-entropy, from the ANN's probabilities.
    """
    network.readout.set()
    wanted = (scores * _output_scale(network)).softmax(1)
    total_TBK = torch.cat(list(_in_blocks(network, x, timesteps, part)), 1) * _output_scale(network)
    distances = []
    for delay in range(timesteps * 3 // 4 + 1):
        passed = total_TBK[delay - 1] if delay else 0
        mean = (total_TBK[-1] - passed) / (timesteps - delay)
        distances.append(-(wanted * mean.log_softmax(1)).sum(dtype=torch.float64))
    told = part.total(torch.stack(distances)).tolist()
    best = told.index(min(told))
    network.readout.set(delay=best)
    return best


def _in_blocks(network: SpikingNetwork, x: Tensor, timesteps: int, part: Part) -> Iterator[Tensor]:
    """The output after each step (T, b, K), for the images here of each block."""
    if network.encoder.constant:
        for some in x.split(BLOCK):
            yield torch.cat(list(network.unroll(some, timesteps)))
        return
    seed = part.seed()
    with own_draws(x):
        for block in part.blocks(len(x)):
            seed_torch(seed, block.number)
            yield torch.cat(list(network.unroll(block.padded(x), timesteps)))[:, block.places]


def _output_scale(network: SpikingNetwork) -> Tensor:
    return next(stage for _, stage in network.named_layers() if stage.neuron is None).scale


def bar_over(layers: Iterator[Any], total: int, shown: bool) -> Iterator[Any]:
    """The layers, with a bar that shows how far the calibration is."""
    with bar("calibrate" if shown else None, total=total, leave=False) as progress:
        for layer in layers:
            yield layer
            progress.update()
