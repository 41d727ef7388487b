"""Small networks that the tests of explain share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikeprop as sp
from spikeprop.plugins.explain.step import Subject
from spikeprop.snn import SpikingNetwork, Surrogate


class Residual(nn.Module):
    """A CNN with batch-norm, a skip connection, operations in place and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2)
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(27, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm(self.first(x)), inplace=True)
        h = self.second(skip)
        h += skip
        return self.out(self.drop(self.pool(h.relu_()).flatten(1)))


class Attention(nn.Module):
    """A transformer's block over a few tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu")
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x).mean(1))


def mlp() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    return Subject(name="XOR", model=model, x=x, y=y, loss=F.binary_cross_entropy_with_logits)


def residual() -> Subject:
    torch.manual_seed(1)
    return Subject(name="residual", model=Residual(), x=torch.randn(2, 1, 6, 6), y=torch.tensor([1, 3]))


def attention() -> Subject:
    torch.manual_seed(2)
    return Subject(name="attention", model=Attention(), x=torch.randn(2, 4, 8), y=torch.tensor([0, 2]))


def spiking(surrogate: Surrogate | None = None, timesteps: int = 4, **settings: Any) -> Subject:
    """Two layers of spiking neurons, with thresholds low enough that all of them fire."""
    torch.manual_seed(3)
    ann = sp.MLP(input_shape=(6,), hidden=[5, 4], classes=3)
    snn = sp.convert(ann, [torch.rand(8, 6)], sp.LIF(leak=0.9, surrogate=surrogate, **settings), sp.MaxActivation())
    for neuron in snn.neurons().values():
        neuron.set_threshold(neuron.v_threshold * 0.4)
    return Subject(name="spiking", model=snn, x=torch.rand(2, 6), y=torch.tensor([0, 2]), timesteps=timesteps)


ALL = {"mlp": mlp, "residual": residual, "attention": attention, "spiking": spiking}


def plain_gradients(subject: Subject) -> dict[str, Tensor]:
    """``.grad`` of an ordinary training step in float64, by the network's own forward and torch's autograd."""
    model, x, y = subject.double()
    torch.manual_seed(subject.seed)
    if isinstance(model, SpikingNetwork):
        model.packed = False
        scores = model(x, subject.timesteps)
    else:
        scores = model(x)
    subject.loss(scores, y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
