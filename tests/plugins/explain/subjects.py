"""Small networks that the tests of explain share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikeprop as sp
from spikeprop.plugins.explain.step import TrainingStep
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import SpikingNetwork, Surrogate
from spikeprop.snn.readout import Read
from spikeprop.snn.timed_input import time_first


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


def mlp() -> TrainingStep:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    return TrainingStep(name="XOR", model=model, x=x, y=y, loss=F.binary_cross_entropy_with_logits)


def residual() -> TrainingStep:
    torch.manual_seed(1)
    return TrainingStep(name="residual", model=Residual(), x=torch.randn(2, 1, 6, 6), y=torch.tensor([1, 3]))


def attention() -> TrainingStep:
    torch.manual_seed(2)
    return TrainingStep(name="attention", model=Attention(), x=torch.randn(2, 4, 8), y=torch.tensor([0, 2]))


def spiking(surrogate: Surrogate | None = None, timesteps: int = 4, **settings: Any) -> TrainingStep:
    """Two layers of spiking neurons with thresholds so low that all of them fire."""
    torch.manual_seed(3)
    ann = sp.MLP(input_shape=(6,), hidden=[5, 4], classes=3)
    snn = sp.convert(ann, [torch.rand(8, 6)], sp.LIF(leak=0.9, surrogate=surrogate, **settings), sp.MaxActivation())
    for neuron in snn.neurons().values():
        neuron.set_threshold(neuron.v_threshold * 0.4)
    return TrainingStep(name="spiking", model=snn, x=torch.rand(2, 6), y=torch.tensor([0, 2]), timesteps=timesteps)


def sequences(*, unequal: bool = False, read: Read = "sum", leaky: bool = False, neuron: nn.Module | None = None) -> TrainingStep:
    """Sequences into neurons that read their own spikes of the step before; ``leaky``: an integrator reads them out."""
    torch.manual_seed(1)
    recurrent = sp.Recurrent(neuron or sp.LIF(leak=0.9, v_threshold=0.3), nn.Linear(4, 4))
    module = nn.Sequential(nn.Linear(3, 4), recurrent, nn.Linear(4, 3), *([sp.Integrator(leak=0.8)] if leaky else []))
    network = sp.spiking(module, (3,), encoder=sp.Frames(), read=read)
    x = torch.rand(2, 5, 3)
    batch = Sequences(x, torch.tensor([5, 3])) if unequal else x
    return TrainingStep(name="sequences", model=network, x=batch, y=torch.tensor([0, 2]))


class Tokens(nn.Module):
    """Embedded tokens through causal attention, with unused computations after the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        scores = self.out(F.scaled_dot_product_attention(h, h * 0.5, h, is_causal=True).sum(1))
        self.unused = scores.mean()
        return scores


def tokens() -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(name="tokens", model=Tokens(), x=torch.tensor([[1, 2, 2, 6], [0, 3, 1, 1]]), y=torch.tensor([0, 2]))


def layers() -> TrainingStep:
    """Convolutions of every kind, pooling that overlaps, and batch-norm in evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1, groups=2), nn.BatchNorm2d(4), nn.AvgPool2d(2, 1, 1), nn.Sigmoid(),
        nn.Conv2d(4, 2, 2, dilation=2, bias=False), nn.MaxPool2d(2, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return TrainingStep(name="layers", model=model, x=torch.randn(2, 2, 7, 7), y=torch.tensor([0, 1]), training=False)


class Arithmetic(nn.Module):
    """Broadcasting, quotients, joining, splitting, softmax, GELU, and a sum of squares at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        h = 1 - (x @ self.weight - self.shift).sigmoid() / (2 + self.shift.tanh())
        h = torch.cat([h, -h], 1).softmax(-1).unsqueeze(1).expand(-1, 2, -1)
        a, b = torch.chunk(h * 3.0, 2, dim=2)
        return F.gelu((a * b - 0.5).flatten(1)) + h.sum((1, 2), keepdim=True).squeeze(1)


def arithmetic() -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(name="arithmetic", model=Arithmetic(), x=torch.randn(2, 4), y=torch.randn(2, 6), loss=F.mse_loss)


class Causal(nn.Module):
    """Causal attention: a mask of minus infinity, added, or filled in by a call without a card."""

    def __init__(self, filled: bool) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.filled, self.masked_by, later = filled, -torch.inf, torch.ones(3, 3, dtype=torch.bool).triu(1)
        self.register_buffer("later", later if filled else torch.zeros(3, 3).masked_fill(later, -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        masked = scores.masked_fill(self.later, self.masked_by) if self.filled else scores + self.later
        return self.out((masked.softmax(-1) @ x).sum(1))


def causal(filled: bool = False) -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(name="causal", model=Causal(filled), x=torch.randn(2, 3, 4), y=torch.tensor([0, 2]))


class Modern(nn.Module):
    """What vision and sequence models of today use: SiLU, group-norm, resizing, Einstein sums, attention with dropout, cells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)
        self.mix, self.places = nn.Parameter(torch.randn(4, 4)), nn.Embedding(4, 4, padding_idx=1)
        self.lstm, self.gru, self.out = nn.LSTMCell(4, 3), nn.GRUCell(3, 3), nn.Linear(3, 3)
        self.register_buffer("index", torch.tensor([2, 1, 2]))

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.conv(x)))
        h = F.interpolate(F.interpolate(h, size=(5, 4), mode="bilinear"), size=(3, 2))
        h = torch.einsum("bchw,ck->bhk", h, self.mix)
        h = torch.where(h > 0.1, h, 0.3 * h) + self.places(self.index)
        h = F.scaled_dot_product_attention(h, h * 0.5, h, dropout_p=0.4, is_causal=True)
        state = self.lstm(h[:, 0])
        return self.out(self.gru(*self.lstm(h[:, 2], state)))


def modern() -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(name="modern", model=Modern(), x=torch.randn(2, 2, 3, 3), y=torch.tensor([0, 2]))


def graded(levels: int = 2, *, rectify: bool = True, timesteps: int = 3) -> TrainingStep:
    """A converted network whose spikes carry integers."""
    torch.manual_seed(3)
    ann = sp.MLP(input_shape=(6,), hidden=[5, 4], classes=3)
    snn = sp.convert(ann, [torch.rand(8, 6)], sp.GradedIF(levels=levels, rectify=rectify), sp.MaxActivation())
    return TrainingStep(name="graded", model=snn, x=torch.rand(2, 6), y=torch.tensor([0, 2]), timesteps=timesteps)


EXTRA = {"tokens": tokens, "layers": layers, "arithmetic": arithmetic, "causal": causal, "modern": modern, "graded": graded}
ALL = {"mlp": mlp, "residual": residual, "attention": attention, "spiking": spiking}


def plain_gradients(subject: TrainingStep) -> dict[str, Tensor]:
    """``.grad`` of an ordinary training step in float64, by the network's own forward and torch's autograd."""
    model, x, y = subject.double()
    torch.manual_seed(subject.seed)
    if isinstance(model, SpikingNetwork):
        model.packed = False
        x, lengths = time_first(model, x)
        scores = model(x, subject.steps, lengths=lengths)
    else:
        scores = model(x)
    subject.loss(scores, y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
