"""Modules with neurons where non-linearities stand: ``SpikingCNN`` from a plan, ``SpikingMLP`` from widths, recurrent or not.

``spikeprop.spiking`` makes spiking networks of them, which are trained from scratch. Each layer is a convolution 3x3 or a linear
layer, batch-norm where asked for, neurons, then pooling or dropout; the scores are the last currents, or the potentials of a
``readout``. Batch-norm takes its statistics over batch and time: "batch" is PyTorch's, "threshold" is tdBN (Zheng et al. 2021),
"temporal" is TEBN (Duan et al. 2022), with a factor for each of ``timesteps``. Weights start as those of ``CNN``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from spikeprop.ann.cnn import POOLS, Pool, check_shape, initialise
from spikeprop.snn import LIF, Neuron, Recurrent, TemporalBatchNorm, ThresholdBatchNorm
from spikeprop.snn.dynamics import ReadoutDynamics

BatchNorm = Literal["batch", "threshold", "temporal"]


class _Parts:
    """Copies of a neuron, each with its batch-norm before it.

    Raises:
        ValueError: "temporal" without a number of steps, or steps that nothing reads.
    """

    def __init__(self, neuron: Neuron | None, batch_norm: BatchNorm | None, timesteps: int | None):
        if (batch_norm == "temporal") != (timesteps is not None):
            raise ValueError(
                f"batch_norm is {batch_norm!r} and timesteps is {timesteps}; 'temporal' has a factor for each of a number of "
                "timesteps, and nothing else reads it"
            )
        self.neuron = LIF() if neuron is None else neuron
        self.batch_norm, self.timesteps = batch_norm, timesteps

    def __call__(self, width: int, kind: type[nn.BatchNorm1d | nn.BatchNorm2d]) -> list[nn.Module]:
        theta = float(self.neuron.spike_size.max())
        norms: list[nn.Module] = []
        if self.batch_norm == "batch":
            norms = [kind(width)]
        elif self.batch_norm == "threshold":
            norms = [ThresholdBatchNorm(width, v_threshold=theta)]
        elif self.timesteps is not None:
            norms = [TemporalBatchNorm(width, self.timesteps, v_threshold=theta)]
        return [*norms, copy.deepcopy(self.neuron)]


def _classifier(
    inputs: int,
    hidden: Sequence[int],
    classes: int,
    dropout: float,
    parts: _Parts,
    readout: ReadoutDynamics | None,
    *,
    back: bool,
) -> nn.Sequential:
    """Linear layers with neurons, then the scores; ``back``: each layer's spikes come back to it a step later."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        *norms, neuron = parts(width, nn.BatchNorm1d)
        layers += [nn.Linear(inputs, width, bias=False), *norms]
        layers.append(Recurrent(neuron, nn.Linear(width, width, bias=False)) if back else neuron)
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes, bias=False), *([] if readout is None else [copy.deepcopy(readout)]))


class SpikingCNN(nn.Module):
    """A convolutional network from a plan, with neurons.

    Args:
        input_shape: (channels, height, width) of one image or frame.
        classes: number of classes.
        plan: widths of 3x3 convolutions, "A" for a 2x2 average pooling, "M" for max pooling, for example [32, "A", 64, "A"].
        hidden: widths of the hidden linear layers.
        neuron: copied for every layer; null is ``LIF()``.
        batch_norm: before every neuron: batch, threshold, temporal, or null for none.
        timesteps: of ``batch_norm`` temporal.
        dropout: after convolutions that no pooling follows.
        hidden_dropout: after hidden linear layers.
        readout: what reads the last currents, such as ``Integrator``; null reads them themselves.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        plan: list[int | Pool],
        hidden: list[int] | None = None,
        neuron: Neuron | None = None,
        batch_norm: BatchNorm | None = None,
        timesteps: int | None = None,
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        readout: ReadoutDynamics | None = None,
    ):
        super().__init__()
        check_shape(input_shape)
        parts = _Parts(neuron, batch_norm, timesteps)
        layers: list[nn.Module] = []
        channels, size = input_shape[0], input_shape[1:]
        for entry, following in zip(plan, [*plan[1:], None]):
            if not isinstance(entry, int):
                layers.append(POOLS[entry](2))
                size = tuple(n // 2 for n in size)
                continue
            layers += [nn.Conv2d(channels, entry, 3, padding=1, bias=False), *parts(entry, nn.BatchNorm2d)]
            layers += [nn.Dropout(dropout)] if dropout and following not in POOLS else []
            channels = entry
        self.features = nn.Sequential(*layers)
        if min(size) < 1:
            raise ValueError(f"images of shape {tuple(input_shape)} are too small for this network's poolings")
        self.classifier = _classifier(
            channels * math.prod(size), hidden or [], classes, hidden_dropout, parts, readout, back=False
        )
        initialise(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of one step (B, classes) for images (B, C, H, W); ``spikeprop.spiking`` gives the neurons their state."""
        return self.classifier(self.features(x))


class SpikingMLP(nn.Module):
    """A fully connected network with neurons.

    Args:
        input_shape: shape of one sample at one step.
        classes: number of classes.
        hidden: widths of the hidden layers.
        neuron: copied for every layer; null is ``LIF()``.
        recurrent: each layer's spikes come back to it one step later, through weights that start from N(0, 1/width).
        batch_norm, timesteps, readout: as of ``SpikingCNN``.
        dropout: after each hidden layer.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        hidden: list[int],
        neuron: Neuron | None = None,
        recurrent: bool = False,
        batch_norm: BatchNorm | None = None,
        timesteps: int | None = None,
        dropout: float = 0.0,
        readout: ReadoutDynamics | None = None,
    ):
        super().__init__()
        parts = _Parts(neuron, batch_norm, timesteps)
        self.layers = _classifier(math.prod(input_shape), hidden, classes, dropout, parts, readout, back=recurrent)
        initialise(self, linear_std=None)
        for module in self.modules():
            if isinstance(module, Recurrent) and isinstance(module.synapse, nn.Linear):
                nn.init.normal_(module.synapse.weight, 0, module.synapse.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of one step (B, classes) for samples (B, ...); ``spikeprop.spiking`` gives the neurons their state."""
        return self.layers(x)
