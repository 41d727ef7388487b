"""MAP propagation, plainly: the mathematics of a team of stochastic units in torch, layer by layer.

A hidden layer is drawn from a normal distribution around what the layer below says, h ~ N(g(h' W + b), variance); the output is
an action A, drawn from a softmax or a normal distribution. REINFORCE on every unit is unbiased and very noisy. MAP propagation
(Chung 2020, "MAP Propagation Algorithm", arXiv:2010.07893) first moves the hidden layers to their most probable values given
state and action, by gradient descent on the energy

    E(h | x, A) = sum_l |h_l - mu_l|^2 / (2 variance_l) - log p(A | h_last),

and only then takes each unit's score. As the variances vanish, these scores become the gradient that backpropagation finds. The
learning rule computes with this module; the fast kernels are held to it by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["softplus", "relu"]
ACTIVATIONS = {
    "softplus": (F.softplus, torch.sigmoid),
    "relu": (torch.relu, lambda potential: (potential > 0).to(potential.dtype)),
}


@dataclass(frozen=True, kw_only=True)
class StochasticNetwork:
    """A multilayer network of stochastic units. Any leading dimensions (runs, say) broadcast.

    Attributes:
        weights: of each layer, (..., inputs, units).
        biases: of each layer, (..., units).
        variances: of each layer; that of the output counts only if it is Gaussian.
        temperature: of the softmax output; None: the output is linear and Gaussian.
        activations: of each hidden layer, "softplus" or "relu"; default softplus everywhere.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    variances: Sequence[float]
    temperature: float | None = None
    activations: Sequence[Activation] = field(default=())

    @property
    def hidden(self) -> int:
        """Number of hidden layers."""
        return len(self.weights) - 1

    def potential(self, layer: int, below: Tensor) -> Tensor:
        """(..., B, units) before the activation, for values (..., B, inputs) below."""
        return below @ self.weights[layer] + self.biases[layer].unsqueeze(-2)

    def mean(self, layer: int, below: Tensor) -> Tensor:
        """What a layer's values are drawn around: probabilities at a softmax output."""
        potential = self.potential(layer, below)
        if layer < self.hidden:
            return self._activation(layer)[0](potential)
        return potential if self.temperature is None else torch.softmax(potential / self.temperature, -1)

    def means(self, x: Tensor) -> list[Tensor]:
        """Means of every layer of the deterministic network, in which each value is its mean."""
        means = []
        for layer in range(len(self.weights)):
            means.append(self.mean(layer, means[-1] if means else x))
        return means

    def sample(self, x: Tensor, noise: Sequence[Tensor]) -> list[Tensor]:
        """Values of every layer, each drawn from the layer below.

        Args:
            x: (..., B, inputs).
            noise: of each layer, (..., B, units) standard normal; a softmax output takes only its first column.

        Returns:
            values of each layer; a softmax output's are one-hot.
        """
        values: list[Tensor] = []
        for layer, (drawn, variance) in enumerate(zip(noise, self.variances)):
            mean = self.mean(layer, values[-1] if values else x)
            if layer == self.hidden and self.temperature is not None:
                uniform = torch.special.ndtr(drawn[..., :1])
                index = (uniform >= mean.cumsum(-1)[..., :-1]).sum(-1)
                values.append(F.one_hot(index, mean.shape[-1]).to(mean))
            else:
                values.append(mean + variance**0.5 * drawn)
        return values

    def energy(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        """-log p(values of hidden units, action | x) up to a constant, (..., B)."""
        total = torch.zeros(x.shape[:-1], dtype=x.dtype)
        for layer, (below, value) in enumerate(zip([x, *values], values)):
            mean = self.mean(layer, below)
            if layer == self.hidden and self.temperature is not None:
                total = total - (value * mean.log()).sum(-1)
            else:
                total = total + (value - mean).square().sum(-1) / (2 * self.variances[layer])
        return total

    def signals(self, x: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
        """Scores: d log p(value | values below) / d potential, of each layer (..., B, units)."""
        found = []
        for layer, (below, value) in enumerate(zip([x, *values], values)):
            gap = value - self.mean(layer, below)
            if layer < self.hidden:
                gap = gap * self._activation(layer)[1](self.potential(layer, below))
            softmax = layer == self.hidden and self.temperature is not None
            scale = self.temperature if softmax else self.variances[layer]
            assert scale is not None
            found.append(gap / scale)
        return found

    def relax(self, x: Tensor, values: Sequence[Tensor], iterations: int, step: float = 0.5) -> list[Tensor]:
        """Hidden values moved down the energy, all layers at once, the action held: h_l <- h_l - step * variance_l * dE/dh_l."""
        values = list(values)
        for _ in range(iterations):
            signals = self.signals(x, values)
            moved = []
            for layer, (below, value) in enumerate(zip([x, *values], values[:-1])):
                asked = signals[layer + 1] @ self.weights[layer + 1].mT
                moved.append(value + step * (self.mean(layer, below) - value + self.variances[layer] * asked))
            values = [*moved, values[-1]]
        return values

    def stable_step(self) -> float:
        """A step of ``relax`` that is small enough for its weights: 1 / L, where L bounds the energy's curvature.

        In units of the deviations, h_l / deviation_l, the energy is half the square of J h - ..., where J = I - S and S holds the
        layers' slopes (at most 1) times weights times deviation_l / deviation_(l+1). So L <= (1 + s)^2 + s_out^2 with the
        largest of the spectral norms; that of a softmax is at most 1 / (2 temperature^2). Second derivatives of the activation
        are left out. The paper's fixed step of 0.5 diverges once s exceeds about 1.
        """
        norms = [float(torch.linalg.matrix_norm(weight, 2).max()) for weight in self.weights[1:]]
        ratios = [below / above for below, above in zip(self.variances, self.variances[1:])]
        inner = [norm * ratio**0.5 for norm, ratio in zip(norms[:-1], ratios)]
        last = ratios[-1] if self.temperature is None else self.variances[-2] / (2 * self.temperature**2)
        return 1 / ((1 + max(inner, default=0.0)) ** 2 + last * norms[-1] ** 2)

    def backpropagated(self, x: Tensor, output: Tensor) -> list[Tensor]:
        """Signals of each layer by the chain rule in the deterministic network, from d(objective)/d(output potential)."""
        means = self.means(x)
        signals = [output]
        for layer in reversed(range(self.hidden)):
            slope = self._activation(layer)[1](self.potential(layer, means[layer - 1] if layer else x))
            signals.insert(0, slope * (signals[0] @ self.weights[layer + 1].mT))
        return signals

    def _activation(self, layer: int):
        return ACTIVATIONS[self.activations[layer] if self.activations else "softplus"]


def gradients(x: Tensor, values: Sequence[Tensor], signals: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Sums over the batch of input x signal: for each layer the ascent direction of its weights and of its biases."""
    return [(below.mT @ signal, signal.sum(-2)) for below, signal in zip([x, *values], signals)]


def critic_factor(value: Tensor, mean: Tensor, variance: float, least: float = 1e-6) -> Tensor:
    """1 / (A - mean of A), by which a critic's signals are multiplied: at the energy's minimum they follow the mean's gradient.

    A draft of the paper multiplies by A - mean (its equation 17), the author's code divides, and so do we.
    ``least`` (in standard deviations) keeps the quotient finite.
    """
    gap, least = value - mean, least * variance**0.5
    return 1 / torch.where(gap.abs() < least, torch.copysign(torch.full_like(gap, least), gap), gap)
