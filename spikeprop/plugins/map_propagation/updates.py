"""Parameter updates from the kernels' error signals: eligibility traces, temporal differences and Adam."""

from __future__ import annotations

import math

import numpy as np

from spikeprop.plugins.map_propagation.kernels import (
    ERROR,
    FINAL_RATE,
    FIRST_MOMENT,
    MEAN,
    RATE,
    SECOND_MOMENT,
    VALUE,
    WEIGHT,
    entropy_signals,
    jit,
)

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's


@jit
def accumulate_one(net, x, e, target, decay, weight):
    """target <- decay * target + weight * (input x error signal), for all layers of one environment."""
    decay, weight = target.dtype.type(decay), target.dtype.type(weight)  # so that single precision stays single
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


@jit
def accumulate(net, x, gradient, weight):
    """Without a trace: gradient (P,) += mean over samples of weight (E,) * input * signal."""
    for e in range(x.shape[0]):
        accumulate_one(net, x, e, gradient, 1.0, weight[e] / x.shape[0])


@jit
def adam(net, gradient, t, anneal):
    """The t-th (from 1) ascent step of Adam, with one rate per layer, annealed linearly over ``anneal`` steps."""
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


@jit
def _ascend(net, rule, x, ended, delta, t):
    """theta <- theta + Adam(mean over environments of delta * trace + entropy * dH/dtheta); x with ``ended`` has no action."""
    gradient = np.zeros(net.params.shape[1])
    for e in range(delta.size):
        share = delta[e] / delta.size
        for p in range(gradient.size):
            gradient[p] += share * net.trace[e, p]
    if rule.entropy > 0.0:
        for e in range(delta.size):
            if not ended[e]:
                entropy_signals(net, e, rule.learner)
                accumulate_one(net, x, e, gradient, 1.0, rule.entropy / delta.size)
    adam(net, gradient, t, rule.anneal)


@jit
def learn(critic, critic_rule, actor, actor_rule, x, reward, ended, truncated, started, value, t):
    """Actor and critic follow delta = r + discount * V(s') - V(s) times their traces.

    V(s') = 0 at the end of an episode; delta = 0 if a time limit ended the episode, and at the first step of an episode.

    Args:
        critic, actor: the networks, after they have acted in x.
        critic_rule, actor_rule: their rules.
        x: (E, inputs) present states.
        reward: (E,) rewards of the last action.
        ended: (E,) whether x is the last state of its episode.
        truncated: (E,) whether a time limit ended it.
        started: (E,) whether x is the first state of an episode.
        value: (E,) values of the last states; overwritten by those of x.
        t: number of steps so far; the first step does not learn.
    """
    delta = np.empty(x.shape[0])
    for e in range(x.shape[0]):
        now = critic.units[MEAN, e, critic.units.shape[2] - 1]
        delta[e] = reward[e] + (0.0 if ended[e] else critic_rule.discount * now) - value[e]
        if started[e] or truncated[e]:
            delta[e] = 0.0
        value[e] = now
    if t > 0:
        _ascend(critic, critic_rule, x, ended, delta, t)
        _ascend(actor, actor_rule, x, ended, delta, t)


@jit
def update_trace(net, x, started):
    """z <- decay * z + input * signal; z starts from zero at the first step of an episode."""
    for e in range(x.shape[0]):
        accumulate_one(net, x, e, net.trace[e], 0.0 if started[e] else net.decay, 1.0)
