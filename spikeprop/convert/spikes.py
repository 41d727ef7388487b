"""``SpikeTrains``: what the layers of a network fire on the calibration images, made in order and kept packed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spikeprop.convert.activations import current, forget
from spikeprop.convert.encoded import EncodedInput
from spikeprop.convert.shard import CalibrationShard
from spikeprop.errors import ConversionError
from spikeprop.snn import INPUT, Layer, Neuron, SpikingNetwork


def spike_trains(network: SpikingNetwork, x: Tensor, timesteps: int, shard: CalibrationShard) -> SpikeTrains:
    """Spike trains of a network's layers: packed, or as they are where layers compute or hold tokens."""
    looped = [name for name, layer in network.named_layers() if layer.feedback_sources]
    if looped:
        raise ConversionError(f"layers {', '.join(looped)} read feedback, so no thresholds are found layer by layer; train them")
    plain = bool(network.arithmetic_layers())
    plain |= any(len(shape) not in (1, 3) for name, shape in network.shapes().items() if name != INPUT)
    return (PlainTrains if plain else SpikeTrains)(network, x, timesteps, shard)


class SpikeTrains:
    """Spike trains of the layers that have their thresholds; neurons run without leak.

    Trains and rates that no later layer reads are dropped.

    Args:
        network: in evaluation mode.
        x: images.
        timesteps: steps.
        shard: which of all images they are.
    """

    def __init__(self, network: SpikingNetwork, x: Tensor, timesteps: int, shard: CalibrationShard):
        from spikeprop.snn.engine.layerwise import LayerwiseRun  # here, since it imports Numba

        self._network, self._timesteps, self._encoded = network, timesteps, EncodedInput(network.encoder, x, timesteps, shard)
        self._layers = LayerwiseRun(network, x, timesteps, self._encoded, shard.largest_size(len(x)))
        self._rates: dict[str, Tensor] = {}

    def fire(self, name: str) -> None:
        """Run a layer's neurons, again if the layer was changed."""
        self._layers.fire(name)
        self._rates.pop(name, None)
        forget(self._network, self._rates, name)

    def currents(self, name: str) -> Iterator[Tensor]:
        """Input current of a layer, (K, B, S, C) a chunk of K steps; one step in all if it is the same at every step."""
        return self._layers.currents(name)

    def some_currents(self, name: str, images: Tensor) -> Tensor:
        """Input current of a layer at all steps (T, b, ...), of the images with these numbers."""
        from spikeprop.snn.engine.kernels.words import channels_first

        parts = [chunk_KBSC[:, images] for chunk_KBSC in self.currents(name)]
        currents_TBSC = torch.cat(parts)
        currents_TB = channels_first(currents_TBSC, self._layers.shapes[name]).unflatten(0, currents_TBSC.shape[:2])
        return currents_TB.expand(self._timesteps, *currents_TB.shape[1:]).contiguous()

    def sent(self, neuron: Neuron, currents_TB: Tensor) -> Tensor:
        """The sum of what neurons send for currents at all steps (T, b, ...): (b, ...)."""
        from spikeprop.snn.engine.layerwise import without_leak

        with without_leak(neuron):
            return neuron.run(currents_TB, neuron.initial_state(currents_TB[0]))[0].sum(0)

    def rate(self, name: str) -> Tensor:
        """Spikes a step of a layer that was run, or the mean of the input (B, ...)."""
        if name not in self._rates:
            mean = self._encoded(0, self._timesteps).mean(0) if name == INPUT else self._layers.rate(name)
            self._rates[name] = mean
        return self._rates[name]

    def rates(self, layer: Layer) -> dict[str, Tensor]:
        """Rates of a layer's sources."""
        return {source: self.rate(source) for source in layer.sources}


class PlainTrains(SpikeTrains):
    """The same on the plain reference: of any shapes, and of layers that send real numbers."""

    def __init__(self, network: SpikingNetwork, x: Tensor, timesteps: int, shard: CalibrationShard):
        self._network, self._timesteps, self._encoded = network, timesteps, EncodedInput(network.encoder, x, timesteps, shard)
        self._trains: dict[str, Tensor] = {}  # (T, B, ...); of neurons as int8
        self._rates: dict[str, Tensor] = {}

    def fire(self, name: str) -> None:
        from spikeprop.snn.engine.layerwise import without_leak

        dynamics, state, sent = self._network.dynamics()[name], None, []
        with without_leak(dynamics):
            for current_B in self._currents(name):
                state = dynamics.initial_state(current_B) if state is None else state
                one, state = dynamics.run(current_B.unsqueeze(0), state)
                sent.append(one[0] if dynamics.arithmetic or dynamics.passes_on else one[0].to(torch.int8))
        self._trains[name] = torch.stack(sent)
        self._rates.pop(name, None)
        layer = dict(self._network.named_layers())[name]
        kept = self._network.read_after(name) | {name, *layer.sources}
        for other in self._trains.keys() - kept:
            del self._trains[other]
        forget(self._network, self._rates, name)

    def _currents(self, name: str) -> Iterator[Tensor]:
        """Input current of each step (B, ...)."""
        layer, like = dict(self._network.named_layers())[name], self._encoded.x
        for t in range(self._timesteps):
            values = {s: self._encoded(t, 1)[0] if s == INPUT else self._trains[s][t].to(like) for s in layer.sources}
            yield current(layer, values)

    def currents(self, name: str) -> Iterator[Tensor]:
        for current_B in self._currents(name):
            yield current_B.reshape(1, len(current_B), -1, current_B.shape[-1])

    def some_currents(self, name: str, images: Tensor) -> Tensor:
        return torch.stack([current_B[images] for current_B in self._currents(name)])

    def rate(self, name: str) -> Tensor:
        if name not in self._rates and name != INPUT:
            self._rates[name] = self._trains[name].sum(0, dtype=self._encoded.x.dtype) / self._timesteps
        return super().rate(name)
