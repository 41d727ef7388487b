"""The spiking networks of the benchmarks: VGGs on 32x32 colour images, random weights, Poisson input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spikeprop import CNN, IF, STDB, VGG, Poisson, SpikingNetwork, ThresholdBalancing
from spikeprop.convert import to_spiking

IMAGE = (3, 32, 32)
DEPTHS = {"vgg5": 5, "vgg16": 16}
SCALE = 0.7  # of balanced thresholds: the authors' own for T of 100 and more (Rathi et al. 2020)


def vgg5(seed: int) -> SpikingNetwork:
    """conv 3-64, pool, 64-128, 128-128, pool, fc 8192-1024-10; thresholds balanced; no dropout, the peers' loops have none."""
    torch.manual_seed(seed)
    plan: list[Any] = [64, "A", 128, 128, "A"]
    network = _spiking(CNN(input_shape=IMAGE, classes=10, plan=plan, hidden=[1024], dropout=0, hidden_dropout=0))
    return balanced(network)


def vgg(name: str, seed: int) -> SpikingNetwork:
    """A VGG of the paper, thresholds not yet set."""
    torch.manual_seed(seed)
    return _spiking(VGG(depth=DEPTHS[name], input_shape=IMAGE, classes=10))


@torch.no_grad()
def balanced(network: SpikingNetwork) -> SpikingNetwork:
    """The network, its thresholds balanced on two random images for 100 steps."""
    ThresholdBalancing(timesteps=100, scale=SCALE).calibrate(network, random_images(2))
    return network


def random_images(count: int, device: str = "cpu") -> torch.Tensor:
    """Images (count, 3, 32, 32) in [-1, 1]: smooth, so that they differ from one another in more than noise."""
    coarse = torch.rand(count, IMAGE[0], 4, 4) * 2 - 1
    return F.interpolate(coarse, IMAGE[1:], mode="bicubic").clamp(-1, 1).to(device)


def _spiking(ann: nn.Module) -> SpikingNetwork:
    return to_spiking(ann, lambda: IF(surrogate=STDB()), Poisson(), IMAGE).eval()
