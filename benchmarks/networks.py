"""The spiking networks of the benchmarks: VGGs on 32x32 colour images, random weights, Poisson input; and small trained CNNs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from spikeprop import (
    BPTT,
    CNN,
    IF,
    STDB,
    VGG,
    Backprop,
    Digits,
    Direct,
    FashionMNIST,
    Poisson,
    SpikingNetwork,
    ThresholdBalancing,
    convert,
    fit,
)
from spikeprop.convert import to_spiking
from spikeprop.data import ImageData

IMAGE = (3, 32, 32)
DEPTHS = {"vgg5": 5, "vgg16": 16}
TUNED_AT = 6  # steps of the trained networks' fine-tuning
CACHE = Path(tempfile.gettempdir()) / "spikeprop-benchmarks"  # of trained networks
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


@dataclass(frozen=True)
class Trained:
    """A small CNN of a recipe, which is trained, converted and fine-tuned for a few minutes at most."""

    data: Callable[..., ImageData]
    ann: dict[str, Any]
    epochs: int
    images: int

    def make(self) -> SpikingNetwork:
        """With random weights."""
        ann = CNN(**self.ann, classes=10, dropout=0, hidden_dropout=0)
        return to_spiking(ann, lambda: IF(v_init=0.5, surrogate=STDB()), Direct(), self.ann["input_shape"])


TRAINED = {
    "digits": Trained(Digits, {"input_shape": (1, 8, 8), "plan": [32, "A", 64, "A"], "hidden": [64]}, 30, 1437),
    "fashion": Trained(
        FashionMNIST, {"input_shape": (1, 28, 28), "plan": [32, "A", 64, 64, "A", 128], "hidden": [256]}, 2, 8_000
    ),
}


def trained(name: str, seed: int, cache: Path | None) -> SpikingNetwork:
    """One of ``TRAINED``, as ``spikeprop.convert`` and fine-tuning leave it; kept in the folder ``cache``, default ``CACHE``."""
    cache = cache or CACHE
    torch.manual_seed(seed)
    settings, file = TRAINED[name], cache / f"{name}_{seed}.safetensors"
    network = settings.make()
    if file.exists():
        network.load_state_dict(load_file(file))
        return network
    data = settings.data()
    images, batches = data.train(512, seed=seed), data.train(64, seed=seed)
    some = [batch for batch, _ in zip(batches.epoch(0), range(settings.images // 64))]
    ann = CNN(**settings.ann, classes=10, dropout=0, hidden_dropout=0.2)
    fit(ann, Backprop(), some, torch.optim.SGD(ann.parameters(), lr=0.05, momentum=0.9), epochs=settings.epochs, seed=seed)
    calibrator = ThresholdBalancing(timesteps=50, scale=0.6)
    found = convert(ann, [next(iter(images.epoch(0)))[0]], IF(v_init=0.5, surrogate=STDB()), calibrator)
    found.set_dropout(0.0)
    fit(found, BPTT(timesteps=TUNED_AT), some[:100], torch.optim.Adam(found.parameters(), lr=1e-4), epochs=1, seed=seed)
    network.load_state_dict(found.state_dict())
    cache.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), file)
    return network


def trained_images(name: str, count: int) -> torch.Tensor:
    """The first test images of its data set."""
    return next(iter(TRAINED[name].data().test(count).epoch(0)))[0]


def _spiking(ann: nn.Module) -> SpikingNetwork:
    return to_spiking(ann, lambda: IF(surrogate=STDB()), Poisson(), IMAGE).eval()
