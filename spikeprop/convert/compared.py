"""``Compared``: on how many calibration images a spiking network predicts as its ANN.

A prediction is the class with the largest output, of each sample or place (argmax over dimension 1), in every output of the ANN
that has several classes. The ANN's are those of the network before its calibration, run as an ANN, which the guard has proved
equal to the caller's module. Images that set the thresholds flatter them a little: on 50 photographs a SqueezeNet had 83 %, and
77 % on 50 others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprop.convert.activations import activations
from spikeprop.convert.shard import CalibrationShard
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.output_form import leaves

MOST = 64  # images
FEWEST = 16  # below, a share says nothing
BATCH = 8  # images a simulation takes at once, since the first layers of a large network need much memory


@dataclass(frozen=True)
class Compared:
    """The images, and the ANN's predictions for them.

    Attributes:
        x: images of this process.
        predicted: the ANN's classes, by the output's name.
        count: images of all processes.
    """

    x: Tensor
    predicted: dict[str, Tensor]
    count: int

    @classmethod
    def of(cls, network: SpikingNetwork, x: Tensor, shard: CalibrationShard) -> Compared | None:
        """The first images, and the ANN's predictions; None of too few images, or where no output has several classes.

        Args:
            network: before its calibration.
            x: calibration images of this process.
            shard: of the processes that decide together.
        """
        own = x[: max(1, MOST // shard.processes.count)]
        count = int(shard.total(torch.tensor(float(len(own)))))
        predicted = _classes(network.structured(torch.cat([_as_ann(network, part) for part in own.split(BATCH)])))
        return cls(own, predicted, count) if count >= FEWEST and predicted else None

    def agreement(self, network: SpikingNetwork, timesteps: int, shard: CalibrationShard) -> float:
        """The share of predictions that are the ANN's, from 0 to 1; of several outputs that of the worst."""
        found = [_classes(network(part, timesteps)) for part in self.x.split(BATCH)]
        equal = torch.stack(
            [(torch.cat([part[name] for part in found]) == wanted).double().mean() for name, wanted in self.predicted.items()]
        )
        return float((shard.total(equal.cpu() * len(self.x)) / self.count).min())


def _as_ann(network: SpikingNetwork, x: Tensor) -> Tensor:
    output = x
    for _, _, output in activations(network, x):  # noqa: B007  the last one is meant
        pass
    return output


def _classes(output: Any) -> dict[str, Tensor]:
    """The classes that each output with several of them predicts."""
    several = ((name, leaf) for name, leaf in leaves(output) if isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[1] > 1)
    return {name: leaf.argmax(1) for name, leaf in several}
