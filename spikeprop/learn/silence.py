"""``SilenceCheck``: whether gradients reach the layers of a spiking network that is trained.

A layer in which no neuron fires sends no gradient down with STDB, and its readers' weights get none: the loss stays at that of a
constant output, ln K for K classes. A neuron of one's own whose step has no derivative sends none either, though it fires. Graded
neurons send gradient without spikes, unless their sums are below 0. The check reads the gradients of the first step, which costs
next to nothing; only where a layer's are all zero does it run the network once more, to name the silent layers.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from spikeprop.errors import SilentNetworkWarning
from spikeprop.learn.distributed.sharding import is_sharded
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.signed import takes_back
from spikeprop.snn.watching import silent_layers

IMAGES = 32  # of the batch, on which the silent layers are found


class SilenceCheck:
    """Warns once in a training.

    Args:
        model: that is trained; only spiking networks are checked.
        rule: that trains it; only rules that simulate, which have a number of steps, are checked.
        enabled: for one process of several.
    """

    def __init__(self, model: nn.Module, rule: Any, enabled: bool):
        self.timesteps: int | None = getattr(rule, "timesteps", None)  # None for sequences
        self.due = enabled and isinstance(model, SpikingNetwork) and hasattr(rule, "timesteps") and not is_sharded(model)

    def after_gradient(self, model: nn.Module, x: Any) -> None:
        """After the first gradient: warn if some layer got none because layers do not fire on these examples."""
        due, self.due = self.due, False
        if not due or not isinstance(model, SpikingNetwork) or _reached(model):
            return
        training = model.training
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            silent = _cutting(model, silent_layers(model, x[:IMAGES], self.timesteps))
        model.train(training)
        if not silent and (cut := _cut_off(model)):
            warnings.warn(
                f"no gradient reaches {', '.join(cut)}, though neurons fire, so these are not trained: a neuron of your own "
                "makes its spikes with spikeprop.spike(u, threshold, surrogate), which carries a derivative",
                SilentNetworkWarning,
                stacklevel=5,
            )
        if silent:
            warnings.warn(
                f"within {self.timesteps or x.shape[1]} steps no neuron of {', '.join(silent)} fires, so no gradient passes and "
                "the layers below are not trained: raise the rule's timesteps, lower the thresholds (the calibrator's scale), or "
                "use a surrogate that needs no spikes, such as Triangle",
                SilentNetworkWarning,
                stacklevel=5,
            )


def _reached(network: SpikingNetwork) -> bool:
    """Whether every weight that is trained has a gradient other than zero."""
    weights = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    return all(p.grad is not None and bool(p.grad.any()) for p in weights)


def _cutting(network: SpikingNetwork, silent: list[str]) -> list[str]:
    """The silent layers but graded ones that gradient passed nevertheless, to their own weights or those below."""
    passed, found = False, []
    for name, layer in network.named_layers():
        passed = passed or any(p.grad is not None and bool(p.grad.any()) for p in layer.synapses.parameters())
        if name in silent and not (passed and takes_back(layer.dynamics)):
            found.append(name)
    return found


def _cut_off(network: SpikingNetwork) -> list[str]:
    """Of a network with neurons from elsewhere, the layers whose weights are trained and have no gradient at all."""
    found: list[str] = []
    if all(type(dynamics).__module__.startswith("spikeprop.") for dynamics in network.dynamics().values()):
        return found
    for name, layer in network.named_layers():
        weights = [p for p in layer.synapses.parameters() if p.requires_grad and p.dim() > 1]
        if weights and not any(p.grad is not None and p.grad.any() for p in weights):
            found.append(name)
    return found
