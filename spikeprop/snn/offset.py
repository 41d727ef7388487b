"""Offset spikes: a short run beforehand shows which neurons fire too often or too rarely, and where they should start instead.

After ``pre_run`` steps a neuron that kept up with its input holds a potential in [0, theta). One that is below 0 has fired spikes
that later input took back: it starts the run that counts a spike lower. One that is at theta or above has spikes left to fire: it
starts that much higher. (Hao et al. 2023, "Bridging the gap between ANNs and SNNs by calibrating offset spikes"; all layers are
shifted after one run together, theirs one after another.) The steps beforehand are steps of the simulation like all others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprop.snn.dynamics import LayerDynamics, NeuronState
from spikeprop.snn.neuron import is_integrate_and_fire


def shifted_start(neuron: LayerDynamics, after: NeuronState) -> NeuronState:
    """The state from which a layer starts the run that counts, given its state after the steps beforehand."""
    fresh = neuron.initial_state(after.v)
    if not is_integrate_and_fire(neuron):
        return fresh
    return NeuronState(fresh.v + offset(after.v, neuron.v_threshold) * neuron.v_threshold, fresh.since)


def offset(v: Tensor, theta: Tensor) -> Tensor:
    """Spikes by which a neuron missed its input: -1 below 0, the whole thresholds that are left at theta and above."""
    return torch.where(v < 0, -1.0, torch.floor(v / theta).clamp(min=0.0)).to(v)
