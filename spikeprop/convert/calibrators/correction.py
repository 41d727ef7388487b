"""What the calibrators of Li et al. 2021 ("A free lunch from ANN") share: they correct a layer with its own spikes.

A layer is corrected while the layers below it, corrected already, fire as they will when the network runs for ``timesteps``
steps. So the correction covers their errors as well as the layer's own. Neurons run without leak meanwhile.

Differences from the authors' code: thresholds are searched on the currents that spikes give, not on the ANN's; and, if wished,
for the spikes that come of them (``search``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeprop.convert.activations import current
from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.convert.calibrators.least_error import GridSearch, least_of_grid
from spikeprop.convert.calibrators.rows import Per, from_rows, largest_of_rows, rows
from spikeprop.convert.encoded import isolated_rng
from spikeprop.convert.shard import BLOCK, UNSHARDED, CalibrationShard
from spikeprop.convert.spikes import SpikeTrains, spike_trains
from spikeprop.runtime.checks import at_least_one
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import Layer, SpikingNetwork
from spikeprop.snn.weights import by_channel

POSITIONS = 256  # of an image, that are compared to choose the delay of the readout
SEARCHED = 128  # images that the search on spikes runs


@dataclass(frozen=True, kw_only=True)
class SpikeCalibrator(LayerwiseCalibrator):
    """Finds the threshold of least error for the currents that spikes give, then corrects the layer.

    Attributes:
        timesteps: steps that the network is to run for.
        per: one threshold a layer, or one a channel.
        grid: fractions of the largest activation that are tried as threshold.
        search: "rate" takes the rate of a constant current, as the paper does; "spikes" runs the neurons at each threshold on the
            currents of every step, of up to 128 images: slower, and better where few steps leave spikes uneven.
        delay: choose the step from which the output is read (``delay_readout``); networks of signed neurons need no delay.
    """

    timesteps: int = 16
    per: Per = "channel"
    grid: int = 50
    search: Literal["rate", "spikes"] = "rate"
    delay: bool = True

    def __post_init__(self) -> None:
        at_least_one(self, "timesteps", "grid")
        if self.search not in ("rate", "spikes"):
            raise ValueError(f"search is {self.search!r}; use 'rate' or 'spikes'")

    @abstractmethod
    def correct(self, data: LayerData) -> None:
        """Change a layer whose threshold is set, or the output layer."""

    def spike_trains(self, network: SpikingNetwork, x: Tensor, shard: CalibrationShard) -> SpikeTrains:
        return spike_trains(network, x, self.timesteps, shard)

    def activation_scale(self, data: LayerData) -> Tensor:
        self.set_threshold(data)
        self.correct(data)
        return data.neuron.full_scale * data.layer.scale

    def set_threshold(self, data: LayerData) -> None:
        """Give a layer of neurons the threshold of least error for its weights as they are."""
        if self.search == "spikes":
            full = self._best_for_spikes(data)
        else:
            search = GridSearch(data.counts(self.timesteps), self.per, self.grid)
            full = search.best(data, current(data.layer, data.spikes.rates(data.layer)), data.target)
        data.neuron.set_full_scale(data.limited(full * data.layer.scale) / data.layer.scale)

    def _best_for_spikes(self, data: LayerData) -> Tensor:
        """The positive potential for the largest spike with the least error of what the neurons send, for some images."""
        shard, count = data.shard, data.shard.size(len(data.target))
        chosen = shard.local(torch.arange(0, count, -(-count // SEARCHED)), 1)
        size = data.target.abs() if data.layer.both_signs else data.target
        largest_R, target = shard.largest(largest_of_rows(size, self.per, data.axis)), data.target[chosen]
        currents_TB = data.spikes.some_currents(data.name, chosen)

        def error(full_R: Tensor) -> Tensor:
            data.neuron.set_full_scale(from_rows(full_R, self.per, target, data.axis))
            sent = data.spikes.sent(data.neuron, currents_TB) * data.neuron.spike_size / self.timesteps
            return rows((sent - target).square(), self.per, data.axis).sum(1, dtype=torch.float64)

        def errors(full_GR: Tensor) -> Tensor:
            if not len(chosen):
                return torch.zeros_like(full_GR, dtype=torch.float64)
            return torch.stack([error(full_R) for full_R in full_GR])

        found_R = least_of_grid(shard, largest_R, self.grid, errors)
        return data.positive(from_rows(found_R, self.per, data.target, data.axis))

    def calibrate_readout(self, network: SpikingNetwork, x: Tensor, data: LayerData) -> None:
        self.correct(data)
        if self.delay and not any(n.signed for n in network.dynamics().values()):
            delay_readout(network, x, data.target, self.timesteps, data.shard)


def rate_error(data: LayerData) -> Tensor:
    """Target minus what the layer's rates stand for, in units of its potential (B, ...)."""
    data.spikes.fire(data.name)
    return data.target - data.layer.dynamics.spike_size * data.spikes.rate(data.name)


def correct_bias(data: LayerData) -> None:
    """Add the mean error of each channel to its current; a spike's size is that of its channel."""
    op = add_bias(data.layer, data.target.dim() - 2)
    if op is not None:
        data.spikes.fire(data.name)
        rate, target = (values.movedim(data.axis, 1) for values in (data.spikes.rate(data.name), data.target))
        rate_C, size = data.shard.channel_mean(rate), data.layer.dynamics.spike_size
        op.bias.data.add_((data.shard.channel_mean(target) - size.to(rate_C).flatten() * rate_C).to(op.bias))


def add_bias(layer: Layer, axes: int) -> Any:
    """The operation at the end of a branch whose bias acts on all channels, with a bias of zeros if it had none; or None.

    Args:
        layer: whose current has ``axes`` axes of positions.
    """
    last: list[Any] = [next(reversed(list(synapse)), None) for _, _, synapse in layer.branches()]
    for op in sorted((op for op in last if by_channel(op, axes)), key=lambda op: op.bias is None):
        if op.bias is None:
            outputs = op.out_features if isinstance(op, nn.Linear) else op.out_channels
            op.bias = nn.Parameter(op.weight.new_zeros(outputs).detach(), op.weight.requires_grad)
        return op
    return None


@torch.no_grad()
def delay_readout(network: SpikingNetwork, x: Tensor, scores: Tensor, timesteps: int, shard: CalibrationShard = UNSHARDED) -> int:
    """Choose the delay of the readout for runs of ``timesteps`` steps: where the mean output is nearest to the ANN's scores.

    Args:
        network: calibrated, in evaluation mode; its ``readout`` is set.
        x: images (B, ...).
        scores: of the ANN, in units of the output's potential (B, K).
        timesteps: T; at most three quarters of it are skipped.
        shard: which of all images they are.

    Returns:
        the number of steps that are skipped; 0 keeps the complete sum. Distance is cross-entropy, from the ANN's probabilities;
        of one output, and of several tensors, squared error.
    """
    network.readout.set()
    scale = next(layer for _, layer in network.named_layers() if layer.neuron is None).scale
    several = network.output_form is not None and scores.dim() == 2
    wanted = _some_positions(scores) * scale
    total_TBK = torch.cat(list(_in_blocks(network, x, timesteps, shard)), 1) * scale
    distances = []
    for delay in range(timesteps * 3 // 4 + 1):
        skipped = total_TBK[delay - 1] if delay else 0
        mean = (total_TBK[-1] - skipped) / (timesteps - delay)
        squared = several or wanted.shape[1] == 1
        distance = (mean - wanted).square() if squared else -wanted.softmax(1) * mean.log_softmax(1)
        distances.append(distance.sum(dtype=torch.float64))
    of_all = shard.total(torch.stack(distances)).tolist()
    best = of_all.index(min(of_all))
    network.readout.set(delay=best)
    return best


def _some_positions(values: Tensor, axis: int = 1) -> Tensor:
    """Values whose channels lie on an axis: of dense ones, evenly spaced positions that are enough to compare."""
    if values.dim() <= axis + 1:
        return values
    flat = values.flatten(axis + 1)
    return flat[..., :: -(-flat.shape[-1] // POSITIONS)]


def _in_blocks(network: SpikingNetwork, x: Tensor, timesteps: int, shard: CalibrationShard) -> Iterator[Tensor]:
    """The output after each step (T, b, K), for this process's images of each block."""
    if network.encoder.constant:
        for some in x.split(BLOCK):
            yield torch.cat([_some_positions(output, 2) for output in network.unroll(some, timesteps)])
        return
    seed = shard.seed()
    with isolated_rng(x):
        for block in shard.blocks(len(x)):
            seed_torch(seed, block.number)
            outputs = [_some_positions(output, 2) for output in network.unroll(block.padded(x), timesteps)]
            yield torch.cat(outputs)[:, block.places]
