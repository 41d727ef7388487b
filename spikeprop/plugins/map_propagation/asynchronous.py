"""Asynchronous MAP propagation: hidden values and traces change all the time, without phases that wait for each other.

Hidden values are kept from one state to the next. While the network acts they follow the energy's gradient and the output is
drawn again and again; then the output is the action, and they go on. A trace that is scaled by the inverse square of the
units' velocity mostly holds the signals of values at rest:

    g <- beta g + (1 - beta) dh,    z <- decay z + signal * input / (epsilon + alpha g^2)

Source: section 3.2 and algorithm 3 of the author's draft, "An Alternative to Backpropagation in Reinforcement Learning". The
draft decays the trace by lambda = 0.997 in each of the 40 updates of a step; ``Net.decay`` is the decay of all of them together.
"""

from __future__ import annotations

from spikeprop.plugins.map_propagation.kernels import (
    DEVIATION,
    ERROR,
    MEAN,
    SOFTMAX,
    VALUE,
    VELOCITY,
    all_means,
    critic_factor,
    draw,
    iterate,
    jit,
    score,
)
from spikeprop.plugins.map_propagation.updates import accumulate_one

BETA, EPSILON, ALPHA = 0.7, 1e-5, 1e3  # the draft's, in all tasks


@jit
def _draw_output(net, e, noise):
    """Draw the output from its present mean."""
    first = net.units.shape[2] - net.sizes[-1]
    mean, value = net.units[MEAN, e, first:], net.units[VALUE, e, first:]
    if net.output == SOFTMAX:
        draw(mean, value, noise[0])
    else:
        for i in range(mean.size):
            value[i] = mean[i] + net.layers[-1, DEVIATION] * noise[i]


@jit
def _accelerate(net, e, before):
    """g <- beta g + (1 - beta) dh; dh of a softmax output is 1 if its choice has changed, else 0."""
    first, change = net.units.shape[2] - net.sizes[-1], 0.0
    for i in range(first, before.size):
        if net.units[VALUE, e, i] != before[i]:
            change = 1.0
    for i in range(before.size):
        moved = change if net.output == SOFTMAX and i >= first else net.units[VALUE, e, i] - before[i]
        net.units[VELOCITY, e, i] = BETA * net.units[VELOCITY, e, i] + (1.0 - BETA) * moved


@jit
def _remember(net, x, e, decay, values):
    """z <- decay z + signal * input / (epsilon + alpha g^2)."""
    score(net, e)
    factor = critic_factor(net, e) if values else 1.0
    for i in range(net.units.shape[2]):
        net.units[ERROR, e, i] *= factor / (EPSILON + ALPHA * net.units[VELOCITY, e, i] ** 2)
    accumulate_one(net, x, e, net.trace[e], decay, 1.0)


@jit
def _run(net, rule, x, e, noise, drawing, values):
    """The iterations of one phase of one environment."""
    decay, k = net.decay ** (0.5 / max(rule.iterations, 1)), net.sizes[-1]
    for n in range(rule.iterations):
        score(net, e)
        before = net.units[VALUE, e].copy()
        if drawing:
            _draw_output(net, e, noise[n * k : (n + 1) * k])
        iterate(net, e, rule.step)
        _accelerate(net, e, before)
        _remember(net, x, e, decay, values)


@jit
def act(net, rule, x, noise, started, values):
    """Hidden values follow the energy while the output is drawn in each iteration; the last draw is the action.

    Args:
        net: the network; values and velocities are those of the last state, or zero at the first state of an episode.
        rule: iterations and step.
        x: (E, inputs) present states.
        noise: (E, iterations * outputs) standard normal.
        started: (E,) whether x is the first state of an episode.
        values: True for a critic.
    """
    for e in range(x.shape[0]):
        if started[e]:
            net.units[VALUE, e], net.units[VELOCITY, e], net.trace[e] = 0.0, 0.0, 0.0
        all_means(net, x, e)
        _run(net, rule, x, e, noise[e], True, values)


@jit
def rest(net, rule, x, noise, values):
    """The iterations with the action as output."""
    for e in range(x.shape[0]):
        _run(net, rule, x, e, noise[e], False, values)
