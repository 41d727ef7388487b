"""The hot loop in numba: sample, relax, trace and Adam of a team of units, many thousand times a second.

The mathematics is that of ``reference.py``, to which the tests hold it; here a team's numbers lie flat in a few arrays, so that
one call does the whole step of an actor and a critic. A layer with n inputs and k units has its weights (n, k) row by row, then
its k biases.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

MAP, BACKPROP, REINFORCE = 0, 1, 2  # learners
SOFTMAX, GAUSSIAN = 0, 1  # outputs
VARIANCE, DEVIATION, RATE, FINAL_RATE = 0, 1, 2, 3  # columns of Net.layers
MEAN, SLOPE, VALUE, ERROR = 0, 1, 2, 3  # rows of Net.units
WEIGHT, FIRST_MOMENT, SECOND_MOMENT = 0, 1, 2  # rows of Net.params
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
LEAST_GAP = 1e-6  # of the critic's |A - mean A|, in standard deviations: below it the quotient says nothing

# sums may be reordered, so that they vectorise; NaN and infinity keep their meaning, so that a collapse is seen
_jit: Any = njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


class Net(NamedTuple):
    """A team's arrays: L layers, U units in all, P parameters, E environments (or images).

    Attributes:
        sizes: (L + 1,) int64, inputs first.
        layers: (L, 4) variance, deviation of the noise (0: deterministic), learning rate at the start and at the end.
        params: (3, P) parameters and Adam's two moments.
        trace: (E, P) eligibility.
        units: (4, E, U) mean, slope of the activation, value, error signal.
        output: SOFTMAX or GAUSSIAN.
        temperature: of the softmax.
        decay: of the trace, discount * lambda.
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
    """How a team learns: MAP, BACKPROP or REINFORCE; iterations and step of the relaxation; discount; steps of annealing."""

    learner: int
    iterations: int
    step: float
    discount: float
    anneal: int


@_jit
def _affine(theta, start, below, out):
    """out = below W + b, for the layer whose weights begin at ``start``."""
    n, k = below.size, out.size
    for i in range(k):
        out[i] = theta[start + n * k + i]
    for j in range(n):
        h, row = below[j], theta[start + j * k : start + (j + 1) * k]
        for i in range(k):
            out[i] += h * row[i]


@_jit
def _feedback(theta, start, j, error):
    """sum_i W[j, i] error_i: what the layer above asks of unit j."""
    k = error.size
    row = theta[start + j * k : start + (j + 1) * k]
    total = 0.0
    for i in range(k):
        total += row[i] * error[i]
    return total


@_jit
def _softplus(mean, slope):
    """In place: potential -> mean softplus(potential), and its slope sigmoid(potential)."""
    for i in range(mean.size):
        e = math.exp(-abs(mean[i]))
        positive = mean[i] >= 0
        mean[i] = max(mean[i], 0.0) + math.log1p(e)
        slope[i] = (1.0 if positive else e) / (1.0 + e)


@_jit
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


@_jit
def _means(net, e, layer, start, first, below):
    """Means and slopes of one layer, given the values below."""
    k = net.sizes[layer + 1]
    mean, slope = net.units[MEAN, e, first : first + k], net.units[SLOPE, e, first : first + k]
    _affine(net.params[WEIGHT], start, below, mean)
    if layer < net.sizes.size - 2:
        _softplus(mean, slope)
    elif net.output == SOFTMAX:
        _softmax(mean, net.temperature)


@_jit
def _draw(mean, value, noise):
    """One of several actions, as a one-hot value; ``noise`` is a standard normal number, whose probability is uniform."""
    uniform, total, chosen = 0.5 * math.erfc(-noise / math.sqrt(2.0)), 0.0, mean.size - 1
    for i in range(mean.size - 1):
        total += mean[i]
        if uniform < total:
            chosen = i
            break
    for i in range(mean.size):
        value[i] = 1.0 if i == chosen else 0.0


@_jit
def forward(net, x, noise):
    """Sample every layer from the one below.

    Args:
        net: its units are written.
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
                _draw(mean, value, noise[e, first])
            else:
                for i in range(k):
                    value[i] = mean[i] + net.layers[layer, DEVIATION] * noise[e, first + i]
            start, first, below = start + (n + 1) * k, first + k, value


@_jit
def _score(net, e):
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


@_jit
def _relax(net, x, e, iterations, step):
    """Gradient steps of all hidden layers at once on the energy, the output clamped; then the error signals."""
    last = net.sizes.size - 2
    for _ in range(iterations):
        _score(net, e)
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
        for layer in range(1, last + 1):  # the first layer's means depend on the input alone
            n = net.sizes[layer]
            _means(net, e, layer, start, first + n, net.units[VALUE, e, first : first + n])
            start, first = start + (n + 1) * net.sizes[layer + 1], first + n
    _score(net, e)


@_jit
def _backpropagate(net, e):
    """The hidden layers' error signals by the chain rule, from that of the output."""
    last = net.sizes.size - 2
    first, start = net.units.shape[2] - net.sizes[last + 1], net.params.shape[1]
    for layer in range(last - 1, -1, -1):
        k, above = net.sizes[layer + 1], net.sizes[layer + 2]
        start -= (k + 1) * above
        error = net.units[ERROR, e, first : first + above]
        first -= k
        for j in range(k):
            net.units[ERROR, e, first + j] = net.units[SLOPE, e, first + j] * _feedback(net.params[WEIGHT], start, j, error)


@_jit
def _mean_output(net, x, e):
    """Gaussian output of the network with every hidden unit at its mean: the baseline of the critic's REINFORCE."""
    start, below = 0, x[e]
    for layer in range(net.sizes.size - 1):
        n, k = net.sizes[layer], net.sizes[layer + 1]
        out = np.empty(k)
        _affine(net.params[WEIGHT], start, below, out)
        if layer < net.sizes.size - 2:
            _softplus(out, np.empty(k))
        start, below = start + (n + 1) * k, out
    return below[0]


@_jit
def signals(net, x, rule, values):
    """Error signals of every unit, so that ``input * signal`` is what the eligibility takes in.

    Args:
        net: after ``forward``; values of hidden units are relaxed if the learner is MAP, errors are written.
        x: (E, inputs).
        rule: learner, iterations, step.
        values: whether this is a critic, which follows the gradient of its mean output, rather than the score of its action.
    """
    last = net.units.shape[2] - 1
    for e in range(x.shape[0]):
        if rule.learner == MAP:
            _relax(net, x, e, rule.iterations, rule.step)
        else:
            _score(net, e)
        factor = 1.0
        if values and rule.learner == MAP:
            gap, least = net.units[VALUE, e, last] - net.units[MEAN, e, last], LEAST_GAP * math.sqrt(net.layers[-1, VARIANCE])
            factor = 1.0 / (math.copysign(least, gap) if abs(gap) < least else gap)
        elif values and rule.learner == REINFORCE:
            factor = net.units[VALUE, e, last] - _mean_output(net, x, e)
        elif values:
            net.units[ERROR, e, last] = 1.0
        if rule.learner == BACKPROP:
            _backpropagate(net, e)
        if factor != 1.0:
            for i in range(last + 1):
                net.units[ERROR, e, i] *= factor


@_jit
def _take_in(net, x, e, target, decay, weight):
    """target <- decay * target + weight * (input x error signal), for every layer of one environment."""
    start, first, below = 0, 0, x[e]
    for layer in range(net.sizes.size - 1):
        n, k = net.sizes[layer], net.sizes[layer + 1]
        error = net.units[ERROR, e, first : first + k]
        for j in range(n):
            h, row = weight * below[j], target[start + j * k : start + (j + 1) * k]
            for i in range(k):
                row[i] = decay * row[i] + h * error[i]
        row = target[start + n * k : start + (n + 1) * k]
        for i in range(k):
            row[i] = decay * row[i] + weight * error[i]
        start, first, below = start + (n + 1) * k, first + k, net.units[VALUE, e, first : first + k]


@_jit
def accumulate(net, x, gradient, weight):
    """Without a trace: gradient (P,) += mean over images of weight (E,) * input * signal."""
    for e in range(x.shape[0]):
        _take_in(net, x, e, gradient, 1.0, weight[e] / x.shape[0])


@_jit
def adam(net, gradient, t, anneal):
    """One ascent step of Adam, the t-th (from 1), with each layer's own rate, annealed linearly over ``anneal`` steps."""
    share = min(t / anneal, 1.0) if anneal > 0 else 0.0
    unbias1, unbias2, start = 1.0 / (1.0 - BETA1**t), 1.0 / (1.0 - BETA2**t), 0
    for layer in range(net.sizes.size - 1):
        end = start + (net.sizes[layer] + 1) * net.sizes[layer + 1]
        rate = unbias1 * (net.layers[layer, RATE] + share * (net.layers[layer, FINAL_RATE] - net.layers[layer, RATE]))
        theta, m, v = net.params[WEIGHT, start:end], net.params[FIRST_MOMENT, start:end], net.params[SECOND_MOMENT, start:end]
        g = gradient[start:end]
        for i in range(end - start):
            m[i] = BETA1 * m[i] + (1.0 - BETA1) * g[i]
            v[i] = BETA2 * v[i] + (1.0 - BETA2) * g[i] * g[i]
            theta[i] += rate * m[i] / (math.sqrt(v[i] * unbias2) + EPSILON)
        start = end


@_jit
def _learn(net, delta, gradient, t, anneal):
    """theta <- theta + Adam(mean over environments of delta * trace)."""
    for p in range(gradient.size):
        gradient[p] = 0.0
    for e in range(delta.size):
        share = delta[e] / delta.size
        for p in range(gradient.size):
            gradient[p] += share * net.trace[e, p]
    adam(net, gradient, t, anneal)


@_jit
def _remember(net, x, started):
    """z <- decay * z + input * signal, from zero where an episode has just begun."""
    for e in range(x.shape[0]):
        _take_in(net, x, e, net.trace[e], 0.0 if started[e] else net.decay, 1.0)


@_jit
def actor_critic_step(critic, actor, rule, x, noise, reward, ended, truncated, started, value, t):
    """One step of actor and critic: act, learn from the last transition, relax, remember.

    delta = r + discount * V(s') - V(s), with V(s') = 0 at the end of an episode; delta = 0 where time cut it off and where a new
    one begins.

    Args:
        critic, actor: teams.
        rule: how they learn.
        x: (E, inputs) states now; the action for them is left in the actor's values.
        noise: (E, U of critic + U of actor) standard normal.
        reward: (E,) for the last action.
        ended: (E,) whether x is the last state of its episode.
        truncated: (E,) whether it ended for lack of time.
        started: (E,) whether x is the first state of an episode.
        value: (E,) of the last states; becomes that of x.
        t: number of steps so far; the first only acts.
    """
    split = critic.units.shape[2]
    forward(critic, x, noise[:, :split])
    forward(actor, x, noise[:, split:])
    delta = np.empty(x.shape[0])
    for e in range(x.shape[0]):
        now = critic.units[MEAN, e, split - 1]
        delta[e] = reward[e] + (0.0 if ended[e] else rule.discount * now) - value[e]
        if started[e] or truncated[e]:
            delta[e] = 0.0
        value[e] = now
    if t > 0:
        _learn(critic, delta, np.empty(critic.params.shape[1]), t, rule.anneal)
        _learn(actor, delta, np.empty(actor.params.shape[1]), t, rule.anneal)
    signals(critic, x, rule, True)
    _remember(critic, x, started)
    signals(actor, x, rule, False)
    _remember(actor, x, started)
