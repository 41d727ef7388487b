"""Differential machine learning: a network trained on payoffs and on their pathwise derivatives (Huge & Savine 2020).

``TwinNet`` has softplus layers and one output y; its twin computes the derivative explicitly with the same weights,

    b_L = w_L,   b_l = (b_{l+1} W_l^T) * sigmoid(z_l),   dy/dx = b_0

so values and derivatives are in one graph, and training differentiates both. Inputs and labels are standardised; the loss is

    alpha MSE(y) + beta mean_j MSE(lambda_j dy/dx_j),   alpha = 1 / (1 + n),   beta = n / (1 + n),   lambda_j = 1 / rms(dy/dx_j)

Training can collapse to a constant network (it did in the authors' published notebook, at a peak rate of 0.1). This is detected
by the ratio of the loss to that of the best constant; training then restarts with other weights and half the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from spikeprop.errors import MarketError, TrainingCollapsed
from spikeprop.plugins.aad.models import at_least
from spikeprop.runtime.arguments import typed
from spikeprop.runtime.progress import bar
from spikeprop.runtime.seeding import generator
from spikeprop.runtime.signals import stop_if_requested


@typed(MarketError)
class TwinNet(nn.Module):
    """A network from (batch, inputs) to values (batch,) and derivatives (batch, inputs).

    Args:
        inputs: number of inputs.
        width, depth: width and number of hidden layers.
        draws: random generator of the initial weights.
        dtype: type of weights and inputs.
    """

    def __init__(
        self, inputs: int, *, width: int = 20, depth: int = 4, draws: torch.Generator, dtype: torch.dtype = torch.float64
    ):
        super().__init__()
        sizes = [inputs, *[width] * depth, 1]
        scaled = [torch.randn(a, b, generator=draws, dtype=dtype) / a**0.5 for a, b in pairwise(sizes)]
        self.weights = nn.ParameterList(scaled)
        self.biases = nn.ParameterList(torch.zeros(b, dtype=dtype) for b in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Values."""
        return self._layers(x)[0]

    def twin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and derivatives."""
        y, before = self._layers(x)
        weights = list(self.weights)
        back = weights[-1].T.expand(len(x), -1)
        for z, weight in zip(reversed(before), reversed(weights[:-1])):
            back = (back * torch.sigmoid(z)) @ weight.T
        return y, back

    def _layers(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        before = []
        for weight, bias in zip(list(self.weights)[:-1], self.biases):
            before.append(torch.addmm(bias, x, weight))
            x = nn.functional.softplus(before[-1])
        return torch.addmm(self.biases[-1], x, self.weights[-1]).squeeze(1), before


@typed(MarketError)
@dataclass(frozen=True)
class Examples:
    """Training examples from a simulation.

    Attributes:
        x: inputs (n, inputs).
        y: payoffs (n,).
        dydx: pathwise derivatives (n, inputs) of the payoffs.
    """

    x: Tensor
    y: Tensor
    dydx: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1] or self.dydx.shape != self.x.shape:
            raise MarketError(
                f"examples need x (n, inputs), y (n,) and dydx (n, inputs), not {tuple(self.x.shape)}, {tuple(self.y.shape)}, "
                f"{tuple(self.dydx.shape)}"
            )
        for name in ("x", "y", "dydx"):
            if not bool(getattr(self, name).isfinite().all()):
                raise MarketError(
                    f"{name} of the examples contains a number that is not finite; payoffs must be differentiable along paths"
                )


@typed(MarketError)
@dataclass(frozen=True, kw_only=True)
class TwinTraining:
    """Training settings of twin networks; the defaults are those of the authors' notebooks.

    Attributes:
        epochs: passes over the examples.
        batches: mini-batches per epoch, each with at least ``least_batch`` examples.
        least_batch: minimum size of a mini-batch.
        knots, rates: piecewise linear learning rate over the fraction of training done.
        width, depth: width and number of hidden layers.
        balance: factor of beta / alpha, which is n for the authors' value of 1.
        collapsed: ratio to the loss of the best constant above which a network counts as collapsed.
        attempts: maximum number of trainings.
    """

    epochs: int = 100
    batches: int = 16
    least_batch: int = 256
    knots: Sequence[float] = (0.0, 0.2, 0.6, 0.9, 1.0)
    rates: Sequence[float] = (1e-8, 0.1, 0.01, 1e-6, 1e-8)
    width: int = 20
    depth: int = 4
    balance: float = 1.0
    collapsed: float = 0.98
    attempts: int = 4

    def __post_init__(self) -> None:
        for name in ("epochs", "batches", "least_batch", "width", "depth", "attempts"):
            at_least(name, getattr(self, name), 1)
        if len(self.knots) != len(self.rates) or list(self.knots) != sorted(self.knots) or min(self.rates) <= 0:
            raise MarketError(
                f"knots {self.knots} and rates {self.rates}: give the same number of each, knots increasing, rates above 0"
            )
        at_least("balance", self.balance, 0, strict=True)
        if not 0 < self.collapsed <= 1:
            raise MarketError(f"collapsed is {self.collapsed}; it must lie above 0 and be at most 1")


class PriceSurrogate:
    """A trained network in the units of its examples: a fast approximation of a price.

    Attributes:
        restarts: number of collapsed trainings before this one.
        unexplained: ratio of the loss to that of the best constant.
    """

    def __init__(self, net: TwinNet, scale: _Scale, restarts: int, unexplained: float):
        self._net, self._scale = net, scale
        self.restarts, self.unexplained = restarts, unexplained

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) and derivatives (n, inputs)."""
        with torch.no_grad():
            y, slope = self._net.twin((x - self._scale.x_mean) / self._scale.x_std)
        return self._scale.y_mean + self._scale.y_std * y, slope * self._scale.y_std / self._scale.x_std


@typed(MarketError)
def fit_surrogate(
    examples: Examples, *, differential: bool, seed: int, training: TwinTraining | None = None, label: str | None = None
) -> PriceSurrogate:
    """Train a network on values, or on values and derivatives; restart if it collapses.

    Args:
        examples: simulated examples.
        differential: train on derivatives too.
        seed: seed of weights and order of examples.
        training: settings.
        label: text of the progress bar; None for no bar.

    Raises:
        TrainingCollapsed: every attempt collapsed.
        MarketError: all examples are equal.
    """
    training = training or TwinTraining()
    scale = _Scale(examples)
    weight = training.balance * examples.x.shape[1] if differential else 0.0
    for attempt in range(training.attempts):
        draws = generator(seed, attempt)
        net = TwinNet(examples.x.shape[1], width=training.width, depth=training.depth, draws=draws, dtype=examples.x.dtype)
        _train(net, scale, weight, training, 0.5**attempt, draws, label)
        with torch.no_grad():
            left = float(scale.loss(net, slice(None), weight) / scale.constant_loss(weight))
        if left < training.collapsed:  # False for NaN
            return PriceSurrogate(net, scale, attempt, left)
    raise TrainingCollapsed(
        f"in each of {training.attempts} attempts, the loss of the twin net was more than {training.collapsed} of that of the "
        "best constant, or not a number; lower the rates, give more examples, or raise collapsed if the labels are very noisy"
    )


class _Scale:
    """Standardised examples, their units, and the loss."""

    def __init__(self, examples: Examples):
        self.x_mean, self.x_std = examples.x.mean(0), examples.x.std(0)
        self.y_mean, self.y_std = examples.y.mean(), examples.y.std()
        for name, spread in (("x", self.x_std), ("y", self.y_std)):
            if not bool((spread > 0).all()):
                raise MarketError(f"the standard deviation of {name} is 0 over the examples; nothing can be learned from them")
        self.x = (examples.x - self.x_mean) / self.x_std
        self.y = (examples.y - self.y_mean) / self.y_std
        self.dydx = examples.dydx * self.x_std / self.y_std
        rms = self.dydx.square().mean(0).sqrt()
        self.factor = torch.where(rms > 0, 1 / rms, torch.zeros_like(rms))  # an input with zero derivatives is ignored

    def loss(self, net: TwinNet, which: Tensor | slice, weight: float) -> Tensor:
        """Loss of some examples; ``weight`` is the weight of derivatives relative to values, 0 for values only."""
        if not weight:
            return (net(self.x[which]) - self.y[which]).square().mean()
        y, slope = net.twin(self.x[which])
        values = (y - self.y[which]).square().mean()
        slopes = ((slope - self.dydx[which]) * self.factor).square().mean()
        return (values + weight * slopes) / (1 + weight)

    def constant_loss(self, weight: float) -> Tensor:
        """Loss of the best constant: the mean, with zero derivatives."""
        return (self.y.square().mean() + weight * (self.dydx * self.factor).square().mean()) / (1 + weight)


def _train(
    net: TwinNet, scale: _Scale, weight: float, training: TwinTraining, slowed: float, draws: torch.Generator, label: str | None
) -> None:
    n = len(scale.x)
    size = min(n, max(training.least_batch, n // training.batches))
    optimizer = torch.optim.Adam(net.parameters())
    with bar(label, total=training.epochs, unit="epoch", leave=False) as progress:
        for epoch in range(training.epochs):
            stop_if_requested()
            rate = slowed * float(np.interp(epoch / training.epochs, training.knots, training.rates))
            optimizer.param_groups[0]["lr"] = rate
            for which in torch.randperm(n, generator=draws).split(size):
                optimizer.zero_grad()
                loss = scale.loss(net, which, weight)
                if not bool(loss.isfinite()):
                    return  # detected by fit_surrogate
                loss.backward()
                optimizer.step()
            progress.update()
