"""The complete step of an actor and a critic: act, learn from the last transition, relax, update the traces."""

from __future__ import annotations

from spikeprop.plugins.map_propagation import asynchronous, batch, kernels
from spikeprop.plugins.map_propagation.kernels import ASYNCHRONOUS, jit
from spikeprop.plugins.map_propagation.updates import learn, update_trace


def noise_width(net: kernels.Net, rule: kernels.Rule) -> int:
    """Standard normal numbers that a network needs for a step, in each environment."""
    return rule.iterations * int(net.sizes[-1]) if rule.learner == ASYNCHRONOUS else net.units.shape[2]


@jit
def _step(critic, critic_rule, actor, actor_rule, x, noise, split, reward, ended, truncated, started, value, t):
    """``actor_critic_step``, environment by environment; ``split`` is the critic's number of columns of the noise."""
    kernels.forward(critic, x, noise[:, :split])
    kernels.forward(actor, x, noise[:, split:])
    learn(critic, critic_rule, actor, actor_rule, x, reward, ended, truncated, started, value, t)
    kernels.signals(critic, x, critic_rule, True)
    update_trace(critic, x, started)
    kernels.signals(actor, x, actor_rule, False)
    update_trace(actor, x, started)


@jit
def _act(net, rule, x, noise, started, values):
    if rule.learner == ASYNCHRONOUS:
        asynchronous.act(net, rule, x, noise, started, values)
    else:
        kernels.forward(net, x, noise)


@jit
def _remember(net, rule, x, noise, started, values):
    if rule.learner == ASYNCHRONOUS:
        asynchronous.rest(net, rule, x, noise, values)
    else:
        kernels.signals(net, x, rule, values)
        update_trace(net, x, started)


@jit
def _asynchronous_step(critic, critic_rule, actor, actor_rule, x, noise, split, reward, ended, truncated, started, value, t):
    """``_step`` if at least one network is asynchronous: a function of its own, which others need not compile."""
    _act(critic, critic_rule, x, noise[:, :split], started, True)
    _act(actor, actor_rule, x, noise[:, split:], started, False)
    learn(critic, critic_rule, actor, actor_rule, x, reward, ended, truncated, started, value, t)
    _remember(critic, critic_rule, x, noise[:, :split], started, True)
    _remember(actor, actor_rule, x, noise[:, split:], started, False)


def actor_critic_step(critic, critic_rule, actor, actor_rule, x, noise, reward, ended, truncated, started, value, t) -> None:
    """One step in E environments; the action of the present states is written to the actor's values.

    Args:
        critic, actor: the networks.
        critic_rule, actor_rule: their learning rules.
        x: (E, inputs) present states.
        noise: (E, numbers) standard normal, ``noise_width`` of the critic's and then the actor's.
        reward, ended, truncated, started, value, t: see ``updates.learn``.
    """
    x, noise = (one.astype(critic.units.dtype, copy=False) for one in (x, noise))
    split = noise_width(critic, critic_rule)
    some_asynchronous = ASYNCHRONOUS in (critic_rule.learner, actor_rule.learner)
    if len(x) < batch.LEAST or some_asynchronous:
        step = _asynchronous_step if some_asynchronous else _step
        step(critic, critic_rule, actor, actor_rule, x, noise, split, reward, ended, truncated, started, value, t)
        return
    batch.forward(critic, x, noise[:, :split])
    batch.forward(actor, x, noise[:, split:])
    learn(critic, critic_rule, actor, actor_rule, x, reward, ended, truncated, started, value, t)
    for net, rule, values in ((critic, critic_rule, True), (actor, actor_rule, False)):
        batch.signals(net, x, rule, values)
        update_trace(net, x, started)
