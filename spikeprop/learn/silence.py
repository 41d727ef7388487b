"""``SilenceCheck``: whether gradients reach the layers of a spiking network that is trained.

A layer in which no neuron fires sends no gradient down with STDB, and its readers' weights get none: the loss stays at that of a
constant output, ln K for K classes. The check reads the gradients of the first step, which costs next to nothing; only where a
layer's are all zero does it run the network once more, to name the silent layers.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.errors import SilentNetworkWarning
from spikeprop.learn.distributed.sharding import is_sharded
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.watching import silent_layers

IMAGES = 32  # of the batch, on which the silent layers are found


class SilenceCheck:
    """Warns once in a training.

    Args:
        model: that is trained; only spiking networks are checked.
        rule: with the number of steps, if it simulates.
        enabled: for one process of several.
    """

    def __init__(self, model: nn.Module, rule: Any, enabled: bool):
        timesteps = getattr(rule, "timesteps", None)
        complete = enabled and isinstance(model, SpikingNetwork) and not is_sharded(model)
        self.timesteps: int | None = timesteps if complete and isinstance(timesteps, int) else None

    def after_gradient(self, model: nn.Module, x: Tensor) -> None:
        """After the first gradient: warn if some layer got none because layers do not fire on these images."""
        timesteps, self.timesteps = self.timesteps, None
        if timesteps is None or not isinstance(model, SpikingNetwork) or _reached(model):
            return
        training = model.training
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            silent = silent_layers(model, x[:IMAGES], timesteps)
        model.train(training)
        if silent:
            warnings.warn(
                f"within {timesteps} steps no neuron of {', '.join(silent)} fires, so no gradient passes and the layers below "
                "are not trained: raise the rule's timesteps, lower the thresholds (the calibrator's scale), or use a surrogate "
                "that needs no spikes, such as Triangle",
                SilentNetworkWarning,
                stacklevel=5,
            )


def _reached(network: SpikingNetwork) -> bool:
    """Whether every weight that is trained has a gradient other than zero."""
    weights = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    return all(p.grad is not None and bool(p.grad.any()) for p in weights)
