"""Networks of stochastic units in numba: sampling, relaxation and error signals, many thousand times per second.

The mathematics is that of ``reference.py``, and the tests compare both. The numbers of a network are stored flat in a few
arrays, so that one call computes a complete step of an actor and a critic. A layer with n inputs and k units stores its weights
(n, k) row by row, then its k biases.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

MAP, BACKPROP, REINFORCE, ASYNCHRONOUS = 0, 1, 2, 3  # learners
SOFTMAX, GAUSSIAN = 0, 1  # outputs
VARIANCE, DEVIATION, RATE, FINAL_RATE = 0, 1, 2, 3  # columns of Net.layers
MEAN, SLOPE, VALUE, ERROR, VELOCITY = 0, 1, 2, 3, 4  # rows of Net.units
WEIGHT, FIRST_MOMENT, SECOND_MOMENT = 0, 1, 2  # rows of Net.params
LEAST_PROBABILITY = 1e-300  # below it p log p is 0
LEAST_GAP = 1e-6  # lower bound of the critic's |A - mean A| in standard deviations; below it the quotient is meaningless

# Sums may be reordered, so that they can be vectorised; NaN and infinity keep their meaning, so that a collapse is detected.
# Products and sums are not contracted: contraction differs between freshly compiled loops and loops from numba's cache, so a run
# would not be reproducible.
jit: Any = njit(cache=True, error_model="numpy", fastmath={"reassoc", "arcp", "nsz"})


class Net(NamedTuple):
    """Arrays of a network: L layers, U units in total, P parameters, E environments (or images).

    Attributes:
        sizes: (L + 1,) int64, inputs first.
        layers: (L, 4) variance, deviation of the noise (0: deterministic), learning rate at the start and at the end.
        params: (3, P) parameters and Adam's two moments.
        trace: (E, P) eligibility.
        units: (5, E, U) mean, slope of the activation, value, error signal, velocity of the value (asynchronous only).
        output: SOFTMAX or GAUSSIAN.
        temperature: temperature of the softmax.
        decay: decay of the trace in a step of the environment, discount * lambda.
    """

    sizes: np.ndarray
    layers: np.ndarray
    params: np.ndarray
    trace: np.ndarray
    units: np.ndarray
    output: int
    temperature: float
    decay: float


class Rule(NamedTuple):
    """How a network learns.

    Attributes:
        learner: MAP, BACKPROP, REINFORCE or ASYNCHRONOUS.
        iterations, step: of the relaxation.
        discount: of rewards.
        anneal: steps until the final learning rates.
        entropy: weight of the entropy of a softmax output in the objective.
    """

    learner: int
    iterations: int
    step: float
    discount: float = 0.0
    anneal: int = 0
    entropy: float = 0.0


@jit
def _affine(theta, start, below, out):
    """out = below W + b, for the layer whose weights start at ``start``."""
    n, k = below.size, out.size
    for i in range(k):
        out[i] = theta[start + n * k + i]
    for j in range(n):
        h, row = below[j], theta[start + j * k : start + (j + 1) * k]
        for i in range(k):
            out[i] += h * row[i]


@jit
def _feedback(theta, start, j, error):
    """sum_i W[j, i] error_i: the feedback of the layer above to unit j."""
    k = error.size
    row = theta[start + j * k : start + (j + 1) * k]
    total = 0.0
    for i in range(k):
        total += row[i] * error[i]
    return total


@jit
def _softplus(mean, slope):
    """In place: potential -> mean softplus(potential) and slope sigmoid(potential)."""
    for i in range(mean.size):
        e = math.exp(-abs(mean[i]))
        positive = mean[i] >= 0
        mean[i] = max(mean[i], 0.0) + math.log1p(e)
        slope[i] = (1.0 if positive else e) / (1.0 + e)


@jit
def _softmax(mean, temperature):
    """In place: potential -> probabilities."""
    top, total = mean[0], 0.0
    for i in range(mean.size):
        top = max(top, mean[i])
    for i in range(mean.size):
        mean[i] = math.exp((mean[i] - top) / temperature)
        total += mean[i]
    for i in range(mean.size):
        mean[i] /= total


@jit
def _means(net, e, layer, start, first, below):
    """Means and slopes of one layer, given the values below."""
    k = net.sizes[layer + 1]
    mean, slope = net.units[MEAN, e, first : first + k], net.units[SLOPE, e, first : first + k]
    _affine(net.params[WEIGHT], start, below, mean)
    if layer < net.sizes.size - 2:
        _softplus(mean, slope)
    elif net.output == SOFTMAX:
        _softmax(mean, net.temperature)


@jit
def draw(mean, value, noise):
    """Draw an action as a one-hot value; ``noise`` is a standard normal number, and its cumulative probability is uniform."""
    uniform, total, chosen = 0.5 * math.erfc(-noise / math.sqrt(2.0)), 0.0, mean.size - 1
    for i in range(mean.size - 1):
        total += mean[i]
        if uniform < total:
            chosen = i
            break
    for i in range(mean.size):
        value[i] = 1.0 if i == chosen else 0.0


@jit
def all_means(net, x, e):
    """Means and slopes of every layer, given the present values."""
    start, first, below = 0, 0, x[e]
    for layer in range(net.sizes.size - 1):
        n, k = net.sizes[layer], net.sizes[layer + 1]
        _means(net, e, layer, start, first, below)
        start, first, below = start + (n + 1) * k, first + k, net.units[VALUE, e, first : first + k]


@jit
def forward(net, x, noise):
    """Sample every layer from the one below.

    Args:
        net: the network; its units are overwritten.
        x: (E, inputs).
        noise: (E, U) standard normal.
    """
    last = net.sizes.size - 2
    for e in range(x.shape[0]):
        start, first, below = 0, 0, x[e]
        for layer in range(last + 1):
            n, k = net.sizes[layer], net.sizes[layer + 1]
            _means(net, e, layer, start, first, below)
            mean, value = net.units[MEAN, e, first : first + k], net.units[VALUE, e, first : first + k]
            if layer == last and net.output == SOFTMAX:
                draw(mean, value, noise[e, first])
            else:
                for i in range(k):
                    value[i] = mean[i] + net.layers[layer, DEVIATION] * noise[e, first + i]
            start, first, below = start + (n + 1) * k, first + k, value


@jit
def score(net, e):
    """The error signals of every layer: d log p(value | values below) / d potential."""
    last, first = net.sizes.size - 2, 0
    for layer in range(last + 1):
        k, inverse = net.sizes[layer + 1], 1.0 / net.layers[layer, VARIANCE]
        for i in range(first, first + k):
            gap = net.units[VALUE, e, i] - net.units[MEAN, e, i]
            if layer < last:
                net.units[ERROR, e, i] = gap * net.units[SLOPE, e, i] * inverse
            else:
                net.units[ERROR, e, i] = gap / net.temperature if net.output == SOFTMAX else gap * inverse
        first += k


@jit
def iterate(net, e, step):
    """One gradient step of all hidden layers on the energy, with fixed output, from the error signals; then all means."""
    last = net.sizes.size - 2
    start, first = (net.sizes[0] + 1) * net.sizes[1], 0
    for layer in range(last):
        k, above = net.sizes[layer + 1], net.sizes[layer + 2]
        error = net.units[ERROR, e, first + k : first + k + above]
        variance = net.layers[layer, VARIANCE]
        for j in range(k):
            pull = net.units[MEAN, e, first + j] - net.units[VALUE, e, first + j]
            net.units[VALUE, e, first + j] += step * (pull + variance * _feedback(net.params[WEIGHT], start, j, error))
        start, first = start + (k + 1) * above, first + k
    start, first = (net.sizes[0] + 1) * net.sizes[1], 0
    for layer in range(1, last + 1):  # the first layer's means depend only on the input
        n = net.sizes[layer]
        _means(net, e, layer, start, first + n, net.units[VALUE, e, first : first + n])
        start, first = start + (n + 1) * net.sizes[layer + 1], first + n


@jit
def _relax(net, e, iterations, step):
    """Iterations of the relaxation; then the error signals."""
    for _ in range(iterations):
        score(net, e)
        iterate(net, e, step)
    score(net, e)


@jit
def _backpropagate(net, e):
    """Error signals of the hidden layers by the chain rule, from those of the output."""
    last = net.sizes.size - 2
    first, start = net.units.shape[2] - net.sizes[last + 1], net.params.shape[1]
    for layer in range(last - 1, -1, -1):
        k, above = net.sizes[layer + 1], net.sizes[layer + 2]
        start -= (k + 1) * above
        error = net.units[ERROR, e, first : first + above]
        first -= k
        for j in range(k):
            net.units[ERROR, e, first + j] = net.units[SLOPE, e, first + j] * _feedback(net.params[WEIGHT], start, j, error)


@jit
def _mean_output(net, x, e):
    """Gaussian output of the network with every hidden unit at its mean: the baseline for the critic's REINFORCE."""
    start, below = 0, x[e]
    for layer in range(net.sizes.size - 1):
        n, k = net.sizes[layer], net.sizes[layer + 1]
        out = np.empty(k, x.dtype)
        _affine(net.params[WEIGHT], start, below, out)
        if layer < net.sizes.size - 2:
            _softplus(out, np.empty(k, x.dtype))
        start, below = start + (n + 1) * k, out
    return below[0]


@jit
def critic_factor(net, e):
    """1 / (A - mean A) of a Gaussian output, kept finite."""
    last = net.units.shape[2] - 1
    gap, least = net.units[VALUE, e, last] - net.units[MEAN, e, last], LEAST_GAP * math.sqrt(net.layers[-1, VARIANCE])
    return 1.0 / (math.copysign(least, gap) if abs(gap) < least else gap)


@jit
def entropy_signals(net, e, learner):
    """Error signals of the entropy H of a softmax output: dH / dpotential = -p (log p + H) / temperature.

    Backprop passes them on to the hidden layers; the units of the other learners know only their own entropy, so only the output
    layer follows it (as in the author's code).
    """
    first = net.units.shape[2] - net.sizes[-1]
    mean, error, entropy = net.units[MEAN, e, first:], net.units[ERROR, e, first:], 0.0
    net.units[ERROR, e, :first] = 0.0
    for i in range(mean.size):
        entropy -= mean[i] * math.log(max(mean[i], LEAST_PROBABILITY))
    for i in range(mean.size):
        error[i] = -mean[i] * (math.log(max(mean[i], LEAST_PROBABILITY)) + entropy) / net.temperature
    if learner == BACKPROP:
        _backpropagate(net, e)


@jit
def signals(net, x, rule, values):
    """Error signals of all units; ``input * signal`` is added to the eligibility trace.

    Args:
        net: the network after ``forward``; hidden values are relaxed if the learner is MAP, errors are overwritten.
        x: (E, inputs).
        rule: learner, iterations, step.
        values: True for a critic, which follows the gradient of its mean output; False for an actor, which follows the score of
            its action.
    """
    last = net.units.shape[2] - 1
    for e in range(x.shape[0]):
        if rule.learner == MAP:
            _relax(net, e, rule.iterations, rule.step)
        else:
            score(net, e)
        factor = 1.0
        if values and rule.learner == MAP:
            factor = critic_factor(net, e)
        elif values and rule.learner == REINFORCE:
            factor = net.units[VALUE, e, last] - _mean_output(net, x, e)
        elif values:
            net.units[ERROR, e, last] = 1.0
        if rule.learner == BACKPROP:
            _backpropagate(net, e)
        if factor != 1.0:
            for i in range(last + 1):
                net.units[ERROR, e, i] *= factor
