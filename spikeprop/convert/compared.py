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

from spikeprop.convert.activations import ann_output
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
        x: images of this process, at least one.
        predicted: the ANN's classes, by the output's name.
        counted: (B,) whether an image counts; a process none of whose images was drawn has one that does not.
        count: images of all processes that count.
    """

    x: Tensor
    predicted: dict[str, Tensor]
    counted: Tensor
    count: int

    @classmethod
    def of(cls, network: SpikingNetwork, x: Tensor, shard: CalibrationShard) -> Compared | None:
        """Images, and the ANN's predictions; None of too few images, or where no output has several classes.

        The images are drawn by their numbers among all, so they do not depend on the number of processes.

        Args:
            network: before its calibration.
            x: calibration images of this process.
            shard: of the processes that decide together.
        """
        at, total = (shard.at, shard.count) if shard.distributed else (torch.arange(len(x)), len(x))
        drawn = torch.isin(at, torch.randperm(total, generator=torch.Generator().manual_seed(0))[:MOST])
        rows = drawn.nonzero().flatten() if bool(drawn.any()) else torch.zeros(1, dtype=torch.long)
        own, count = x[rows.to(x.device)], min(MOST, total)
        predicted = _classes(network.structured(torch.cat([ann_output(network, part) for part in own.split(BATCH)])))
        return cls(own, predicted, drawn[rows], count) if count >= FEWEST and predicted else None

    def agreement(self, network: SpikingNetwork, timesteps: int, shard: CalibrationShard) -> float:
        """The share of predictions that are the ANN's, from 0 to 1; of several outputs that of the worst."""
        found = [_classes(network(part, timesteps)) for part in self.x.split(BATCH)]
        sums = []
        for name, wanted in self.predicted.items():
            equal = torch.cat([part[name] for part in found]) == wanted
            sums.append(equal.double().reshape(len(wanted), -1).mean(1).cpu()[self.counted].sum())
        return float((shard.total(torch.stack(sums)) / self.count).min())


def _classes(output: Any) -> dict[str, Tensor]:
    """The classes that each output with several of them predicts."""
    several = ((name, leaf) for name, leaf in leaves(output) if isinstance(leaf, Tensor) and leaf.ndim > 1 and leaf.shape[1] > 1)
    return {name: leaf.argmax(1) for name, leaf in several}
