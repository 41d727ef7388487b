"""Parameter updates from the kernels' error signals: eligibility traces, Adam, and the complete step of an actor and a critic."""

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
    forward,
    jit,
    signals,
)

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's


@jit
def _accumulate(net, x, e, target, decay, weight):
    """target <- decay * target + weight * (input x error signal), for all layers of one environment."""
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
        _accumulate(net, x, e, gradient, 1.0, weight[e] / x.shape[0])


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
def _learn(net, delta, gradient, t, anneal):
    """theta <- theta + Adam(mean over environments of delta * trace)."""
    for p in range(gradient.size):
        gradient[p] = 0.0
    for e in range(delta.size):
        share = delta[e] / delta.size
        for p in range(gradient.size):
            gradient[p] += share * net.trace[e, p]
    adam(net, gradient, t, anneal)


@jit
def update_trace(net, x, started):
    """z <- decay * z + input * signal; z starts from zero at the first step of an episode."""
    for e in range(x.shape[0]):
        _accumulate(net, x, e, net.trace[e], 0.0 if started[e] else net.decay, 1.0)


@jit
def actor_critic_step(critic, actor, rule, x, noise, reward, ended, truncated, started, value, t):
    """One step of actor and critic: act, learn from the last transition, relax, update the traces.

    delta = r + discount * V(s') - V(s), with V(s') = 0 at the end of an episode; delta = 0 if a time limit ended the episode, and
    at the first step of an episode.

    Args:
        critic, actor: the networks.
        rule: learning rule of both.
        x: (E, inputs) present states; their action is written to the actor's values.
        noise: (E, U of critic + U of actor) standard normal.
        reward: (E,) rewards of the last action.
        ended: (E,) whether x is the last state of its episode.
        truncated: (E,) whether a time limit ended it.
        started: (E,) whether x is the first state of an episode.
        value: (E,) values of the last states; overwritten by those of x.
        t: number of steps so far; the first step does not learn.
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
    update_trace(critic, x, started)
    signals(actor, x, rule, False)
    update_trace(actor, x, started)
