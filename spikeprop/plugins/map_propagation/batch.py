"""``kernels.forward`` and ``kernels.signals`` for many environments or images at once, as matrix products and numpy's ufuncs.

The numbers are those of the kernels to rounding, in the same ``Net``; from ``LEAST`` rows on this is faster. A layer's numbers
are contiguous here, which makes each ufunc several times as fast as on columns of ``Net.units``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from spikeprop.plugins.map_propagation import kernels
from spikeprop.plugins.map_propagation.kernels import DEVIATION, ERROR, MEAN, SLOPE, VALUE, VARIANCE, WEIGHT

LEAST = 16  # rows


@dataclass
class Rows:
    """One layer: weight (inputs, units) and bias (units,) are views; mean, slope, value and error (E, units) are copies."""

    weight: np.ndarray
    bias: np.ndarray
    units: np.ndarray  # (5, E, units), a view
    variance: float
    deviation: float

    def __post_init__(self) -> None:
        self.mean, self.slope, self.value, self.error = (self.units[row].copy() for row in (MEAN, SLOPE, VALUE, ERROR))

    def store(self) -> None:
        """Write the copies back."""
        for row, found in ((MEAN, self.mean), (SLOPE, self.slope), (VALUE, self.value), (ERROR, self.error)):
            self.units[row] = found


def layers_of(net: kernels.Net) -> list[Rows]:
    """The layers of a network."""
    found, start, first = [], 0, 0
    for (n, k), row in zip(pairwise(net.sizes.tolist()), net.layers):
        theta, units = net.params[WEIGHT, start : start + (n + 1) * k], net.units[:, :, first : first + k]
        found.append(Rows(theta[: n * k].reshape(n, k), theta[n * k :], units, float(row[VARIANCE]), float(row[DEVIATION])))
        start, first = start + (n + 1) * k, first + k
    return found


def forward(net: kernels.Net, x: np.ndarray, noise: np.ndarray) -> None:
    """See ``kernels.forward``."""
    layers = layers_of(net)
    *hidden, last = layers
    below, first = x.astype(net.units.dtype, copy=False), 0
    noise = noise.astype(net.units.dtype, copy=False)
    for layer in hidden:
        _softplus(layer, below)
        layer.value = layer.mean + layer.deviation * noise[:, first : first + layer.bias.size]
        below, first = layer.value, first + layer.bias.size
    _output(net, last, below)
    if net.output == kernels.SOFTMAX:
        last.value = _drawn(last.mean, noise[:, first])
    else:
        last.value = last.mean + last.deviation * noise[:, first:]
    for layer in layers:
        layer.store()


def signals(net: kernels.Net, x: np.ndarray, rule: kernels.Rule, values: bool) -> None:
    """See ``kernels.signals``."""
    layers = layers_of(net)
    last = layers[-1]
    if rule.learner == kernels.MAP:
        _relax(net, layers, rule)
    _score(net, layers)
    if rule.learner == kernels.BACKPROP:
        if values:
            last.error[...] = 1
        for layer, above in reversed(list(pairwise(layers))):
            layer.error = (above.error @ above.weight.T) * layer.slope
    elif values:
        gap = last.value - (last.mean if rule.learner == kernels.MAP else _mean_output(layers, x.astype(last.mean.dtype)))
        if rule.learner == kernels.MAP:
            least = kernels.LEAST_GAP * last.deviation
            gap = 1 / np.where(np.abs(gap) < least, np.copysign(least, gap), gap)
        for layer in layers:
            layer.error *= gap
    for layer in layers:
        layer.store()


def _softplus(layer: Rows, below: np.ndarray) -> None:
    """Means softplus(potential) and slopes sigmoid(potential) = exp(potential - mean) of a hidden layer."""
    potential = below @ layer.weight
    potential += layer.bias
    small = np.copysign(potential, -1)
    np.log1p(np.exp(small, out=small), out=small)
    np.maximum(potential, 0, out=layer.mean)
    layer.mean += small
    potential -= layer.mean
    np.exp(potential, out=layer.slope)


def _output(net: kernels.Net, layer: Rows, below: np.ndarray) -> None:
    """Means of the output layer."""
    np.matmul(below, layer.weight, out=layer.mean)
    layer.mean += layer.bias
    if net.output == kernels.SOFTMAX:
        layer.mean -= layer.mean.max(1, keepdims=True)
        layer.mean /= net.temperature
        np.exp(layer.mean, out=layer.mean)
        layer.mean /= layer.mean.sum(1, keepdims=True)


def _drawn(mean: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """One-hot choices of a softmax, from standard normal numbers (E,)."""
    from scipy.special import ndtr

    chosen = (ndtr(noise)[:, None] >= mean.cumsum(1)[:, :-1]).sum(1)
    return (np.arange(mean.shape[1]) == chosen[:, None]).astype(mean.dtype)


def _relax(net: kernels.Net, layers: list[Rows], rule: kernels.Rule) -> None:
    """Iterations of the relaxation: gap <- (1 - step) gap + step variance feedback, where value = mean + gap.

    The product's factor contains the variances: feedback is (gap of the layer above * its slope) W', over its variance.
    """
    *hidden, last = layers
    scales = [layer.variance for layer in hidden[1:]] + [net.temperature if net.output == kernels.SOFTMAX else last.variance]
    back = [
        np.ascontiguousarray(above.weight.T) * (rule.step * layer.variance / scale)
        for layer, above, scale in zip(hidden, layers[1:], scales)
    ]
    gaps = [layer.value - layer.mean for layer in hidden]
    for _ in range(rule.iterations):
        above = last.value - last.mean
        for i in reversed(range(len(hidden))):
            feedback, gap = above @ back[i], gaps[i]
            above = gap * hidden[i].slope if i else gap
            gap *= 1 - rule.step
            gap += feedback
            np.add(hidden[i].mean, gap, out=hidden[i].value)
        for i in range(1, len(hidden)):  # the first layer's means depend only on the input
            _softplus(hidden[i], hidden[i - 1].value)
            np.subtract(hidden[i].value, hidden[i].mean, out=gaps[i])
        _output(net, last, hidden[-1].value)


def _score(net: kernels.Net, layers: list[Rows]) -> None:
    """The error signals of every layer: d log p(value | values below) / d potential."""
    *hidden, last = layers
    for layer in hidden:
        layer.error = (layer.value - layer.mean) * layer.slope / layer.variance
    last.error = (last.value - last.mean) / (net.temperature if net.output == kernels.SOFTMAX else last.variance)


def _mean_output(layers: list[Rows], x: np.ndarray) -> np.ndarray:
    """(E, 1) Gaussian output of the network with every hidden unit at its mean."""
    below = x
    for layer in layers[:-1]:
        below = np.logaddexp(0, below @ layer.weight + layer.bias)
    return below @ layers[-1].weight + layers[-1].bias
