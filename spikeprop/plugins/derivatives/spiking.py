"""Cards of spiking neurons: leaky integrate-and-fire through time with a surrogate derivative, and STDB's surrogate.

    u[t] = leak v[t-1] + I[t];   o[t] = [u[t] > theta];   v[t] = u[t] - theta o[t]

The true derivative of a spike is 0 almost everywhere; a surrogate replaces it, and the spike in the reset is a constant (Rathi et
al. 2020). The tests compare the lines with ``spikeprop.snn.engine.kernels.reference``, which trains the networks.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal
from spikeprop.snn.engine.kernels.reference import integrate_and_fire
from spikeprop.snn.firing import NEVER, advance_since
from spikeprop.snn.surrogate import STDB, ATan, FastSigmoid, Surrogate, Triangle

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
    """Potentials, spikes, spike times and cotangents, step by step from the definition."""
    current, leak, theta = known["I"], known["lam"], known["theta"]
    v, since = torch.zeros_like(current[0]), torch.full_like(current[0], NEVER)
    seen, steps = torch.zeros_like(v), torch.zeros_like(v)  # fired so far; steps since the last spike, or the start
    u, after, times, counted, fired = [], [], [], [], []
    for one in current:
        u.append(leak * v + one)
        spikes = (u[-1] > theta).double()
        v, since = u[-1] - theta * spikes, advance_since(since, spikes)
        after.append(v)
        times.append(since)
        steps, seen = advance_since(steps, spikes), torch.maximum(seen, spikes)
        counted.append(steps)
        fired.append(seen)
    u_TN, since_TN = torch.stack(u), torch.stack(times)
    slope = surrogate(u_TN / theta - 1, since_TN) / theta
    grads, passed = [], torch.zeros_like(current[0])
    for t in reversed(range(len(current))):
        grads.append(known["o_bar"][t] * slope[t] + passed)
        passed = leak * grads[-1]
    found = {"u": u_TN, "v": torch.stack(after), "s": slope, "u_bar": torch.stack(grads[::-1])}
    found |= {"t": torch.stack(counted), "f": torch.stack(fired)}
    return {**found, **_constants(surrogate), "pi": _number(math.pi)}


def _constants(surrogate: Surrogate) -> Tensors:
    names = {"alpha": "alpha", "beta": "beta", "slope": "kappa", "height": "h"}
    return {names[k]: _number(value) for k, value in vars(surrogate).items() if k in names}


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
    Equation("u[n, i]", "lam * v[n - 1, i] + I[n, i]", "integrate"),
    Equation("o[n, i]", "u[n, i] > theta", "fire"),
    Equation("v[n, i]", "u[n, i] - theta * o[n, i]", "reset; the spike is a constant here"),
)
_BACK = (
    Equation(
        "u_bar[n, i]",
        "o_bar[n, i] * s[n, i] + lam * u_bar[n + 1, i]",
        "through the spike of this step, and through the potential of the next step",
    ),
    Equation("I_bar[n, i]", "u_bar[n, i]"),
)

_SUM = Equation(
    "I_bar[n, i]",
    "Sum(o_bar[m, i] * s[m, i] * lam ** (m - n) * (m >= n), m)",
    "a current acts, reduced by the leak, on every later step m",
)


def _card(key: str, surrogate: Surrogate, lines: tuple[Equation, ...], symbols: dict[str, str], **words: str) -> Card:
    """A card of spiking neurons; the lines define the surrogate derivative s."""
    return Card(
        key=key,
        symbols={**_SYMBOLS, **symbols},
        forward=_DYNAMICS,
        direct=(*lines, _SUM),
        chain=(lines[-1], *_BACK),
        example=_example,
        wanted=("I",),
        operation=lambda v: _run(v, surrogate),
        outputs=("o",),
        more_truth=lambda known: _states(known, surrogate),
        **words,
    )


def _through_time(key: str, surrogate: Surrogate, line: str, symbols: dict[str, str], source: str) -> Card:
    name = {"FastSigmoid": "the fast sigmoid's", "Triangle": "the triangle's", "ATan": "the arctangent's"}[
        type(surrogate).__name__
    ]
    return _card(
        key,
        surrogate,
        (Equation("s[n, i]", line, "replaces the derivative of the step function"),),
        symbols,
        title="Leaky integrate-and-fire through time",
        about=f"Backpropagation through time, with {name} slope instead of the derivative of the spike.",
        source=f"Rathi et al. 2020, arXiv:2005.01807; surrogate: {source}",
    )


LIF = _through_time(
    "lif",
    FastSigmoid(slope=5.0),
    "1 / (theta * (1 + kappa * abs(u[n, i] / theta - 1)) ** 2)",
    {"kappa": "steepness of the surrogate"},
    "Zenke & Ganguli 2018",
)
LIF_TRIANGLE = _through_time(
    "lif_triangle",
    Triangle(height=0.5),
    "h * (1 - abs(u[n, i] / theta - 1)) * (abs(u[n, i] / theta - 1) < 1) / theta",
    {"h": "height of the surrogate"},
    "Bellec et al. 2018",
)
LIF_ATAN = _through_time(
    "lif_atan",
    ATan(alpha=2.0),
    "alpha / (2 * theta * (1 + (pi * alpha * (u[n, i] / theta - 1) / 2) ** 2))",
    {"alpha": "height and steepness of the surrogate"},
    "Fang et al. 2021",
)
STDB_CARD = _card(
    "stdb",
    STDB(alpha=0.3, beta=0.1),
    (
        Equation("t[n, i]", "(t[n - 1, i] + 1) * (1 - o[n, i])", "0 if the neuron fires, else incremented"),
        Equation("f[n, i]", "1 - (1 - f[n - 1, i]) * (1 - o[n, i])", "1 from the first spike on"),
        Equation("s[n, i]", "f[n, i] * alpha * exp(-beta * t[n, i]) / theta", "0 before the first spike"),
    ),
    {"t": "steps since the last spike", "f": "whether the neuron has fired", "alpha": "height", "beta": "decay per step"},
    title="Spike-timing-dependent backpropagation (STDB)",
    about="The surrogate depends only on the time since the neuron's last spike, so only spike times are stored. "
    "t counts steps since that spike; before its first spike a neuron's derivative is zero.",
    source="Rathi et al. 2020, arXiv:2005.01807",
)

CARDS: tuple[Card, ...] = (LIF, LIF_TRIANGLE, LIF_ATAN, STDB_CARD)
