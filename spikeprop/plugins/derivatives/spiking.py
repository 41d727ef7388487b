"""Cards of spiking neurons: leaky integrate-and-fire through time with a surrogate derivative, and STDB's surrogate.

    u[t] = leak v[t-1] + I[t];   o[t] = [u[t] > theta];   v[t] = u[t] - theta o[t]

The spike's true derivative is 0 almost everywhere; a surrogate stands in for it, and the spike in the reset counts as a constant
(Rathi et al. 2020). The lines are held against ``spikeprop.snn.kernels.reference``, which trains the networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from spikeprop.plugins.derivatives.card import Card, Step, Tensors, normal
from spikeprop.snn.kernels.reference import NEVER, advance_since, integrate_and_fire
from spikeprop.snn.surrogate import STDB, FastSigmoid, Surrogate

STEPS, NEURONS = 6, 3


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _example(g: Generator) -> Tensors:
    settings = {"lam": _number(0.9), "theta": _number(1.0)}
    return {"I": normal(g, STEPS, NEURONS) + 0.4, "o_bar": normal(g, STEPS, NEURONS), **settings}


def _run(v: Tensors, surrogate: Surrogate) -> Tensors:
    start = torch.zeros_like(v["I"][0])
    spikes, _, _ = integrate_and_fire(
        v["I"], start, torch.full_like(start, NEVER), theta=v["theta"], leak=v["lam"], surrogate=surrogate, to_zero=False
    )
    return {"o": spikes}


def _states(known: Tensors, surrogate: Surrogate) -> Tensors:
    """Potentials, spikes, times and cotangents, one step at a time from the definition."""
    current, leak, theta = known["I"], known["lam"], known["theta"]
    v, since = torch.zeros_like(current[0]), torch.full_like(current[0], NEVER)
    u, after, times = [], [], []
    for one in current:
        u.append(leak * v + one)
        spikes = (u[-1] > theta).double()
        v, since = u[-1] - theta * spikes, advance_since(since, spikes)
        after.append(v)
        times.append(since)
    u_TN, since_TN = torch.stack(u), torch.stack(times)
    slope = surrogate(u_TN / theta - 1, since_TN) / theta
    grads, passed = [], torch.zeros_like(current[0])
    for t in reversed(range(len(current))):
        grads.append(known["o_bar"][t] * slope[t] + passed)
        passed = leak * grads[-1]
    found = {"u": u_TN, "v": torch.stack(after), "t": since_TN, "s": slope, "u_bar": torch.stack(grads[::-1])}
    return {**found, **_constants(surrogate)}


def _constants(surrogate: Surrogate) -> Tensors:
    names = {"alpha": "alpha", "beta": "beta", "slope": "kappa"}
    return {names[k]: _number(value) for k, value in vars(surrogate).items() if k in names}


def _spiking(surrogate: Surrogate) -> tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]]:
    return lambda v: _run(v, surrogate), lambda known: _states(known, surrogate)


_SYMBOLS = {
    "I": "current of step n, neuron i",
    "u": "potential before the spike",
    "v": "potential after the reset",
    "o": "spike, 0 or 1",
    "lam": "leak",
    "theta": "threshold",
    "s": "surrogate derivative of the spike by u",
    "o_bar": "cotangent of the spikes",
}
_DYNAMICS = (
    Step("u[n, i]", "lam * v[n - 1, i] + I[n, i]", "integrate"),
    Step("o[n, i]", "u[n, i] > theta", "fire"),
    Step("v[n, i]", "u[n, i] - theta * o[n, i]", "reset; the spike counts as a constant here"),
)
_BACK = (
    Step(
        "u_bar[n, i]",
        "o_bar[n, i] * s[n, i] + lam * u_bar[n + 1, i]",
        "through the spike of now, and through the potential of the next step",
    ),
    Step("I_bar[n, i]", "u_bar[n, i]"),
)

_lif, _lif_more = _spiking(FastSigmoid(slope=5.0))
LIF = Card(
    key="lif",
    title="Leaky integrate-and-fire through time",
    about="Backpropagation through time. Shown with the fast sigmoid's surrogate; the others replace the line of s.",
    symbols={**_SYMBOLS, "kappa": "steepness of the surrogate"},
    forward=_DYNAMICS,
    direct=(
        Step("s[n, i]", "1 / (theta * (1 + kappa * abs(u[n, i] / theta - 1)) ** 2)", "stands in for the derivative of the step"),
        Step(
            "I_bar[n, i]",
            "Sum(o_bar[m, i] * s[m, i] * lam ** (m - n) * (m >= n), m)",
            "a current still counts, leaked, at every later step m",
        ),
    ),
    chain=(Step("s[n, i]", "1 / (theta * (1 + kappa * abs(u[n, i] / theta - 1)) ** 2)"), *_BACK),
    example=_example,
    wanted=("I",),
    operation=_lif,
    outputs=("o",),
    source="Rathi et al. 2020, arXiv:2005.01807; surrogate: Zenke & Ganguli 2018",
    more_truth=_lif_more,
)

_stdb, _stdb_more = _spiking(STDB(alpha=0.3, beta=0.1))
STDB_CARD = Card(
    key="stdb",
    title="Spike-timing-dependent backpropagation (STDB)",
    about="The surrogate depends on the time since the neuron's last spike alone, so spike times are all that is kept. "
    "t counts steps since that spike; for a neuron that has not fired it is so large that the derivative vanishes.",
    symbols={**_SYMBOLS, "t": "steps since the last spike", "alpha": "height", "beta": "decay by step"},
    forward=_DYNAMICS,
    direct=(
        Step("t[n, i]", "(t[n - 1, i] + 1 + never * (n == 0)) * (1 - o[n, i])", "0 when it fires, else one more"),
        Step("s[n, i]", "alpha * exp(-beta * t[n, i]) / theta"),
        Step("I_bar[n, i]", "Sum(o_bar[m, i] * s[m, i] * lam ** (m - n) * (m >= n), m)"),
    ),
    chain=(Step("s[n, i]", "alpha * exp(-beta * t[n, i]) / theta"), *_BACK),
    example=_example,
    wanted=("I",),
    operation=_stdb,
    outputs=("o",),
    source="Rathi et al. 2020, arXiv:2005.01807",
    more_truth=lambda known: {**_stdb_more(known), "never": _number(NEVER)},
)

CARDS: tuple[Card, ...] = (LIF, STDB_CARD)
