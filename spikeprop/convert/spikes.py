"""``SpikeTrains``: what the layers of a network fire on the calibration images, made in order and kept packed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spikeprop.convert.activations import forget
from spikeprop.convert.encoded import EncodedInput
from spikeprop.convert.shard import CalibrationShard
from spikeprop.snn import INPUT, Layer, Neuron, SpikingNetwork


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

        self._network, self._timesteps, self._encoded = network, timesteps, EncodedInput(network.encoder, x, shard)
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
