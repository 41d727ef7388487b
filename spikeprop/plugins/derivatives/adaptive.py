"""Cards of neurons beyond leaky integrate-and-fire: an adaptive threshold, and graded spikes.

The true derivative of a spike or a payload is 0 almost everywhere. ALIF's spike has a surrogate, and its adaptation passes
gradient on to earlier spikes (Bellec et al. 2018). Payloads pass it straight through their rounding (Bengio et al. 2013).
The tests compare the lines with autograd through ``spikeprop.snn.adaptive`` and ``spikeprop.snn.signed``.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal
from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.signed import GradedIF
from spikeprop.snn.surrogate import FastSigmoid

STEPS, NEURONS = 6, 3
SETTINGS = {"lam": 0.875, "theta": 1.0, "beta": 0.375, "rho": 0.75, "kappa": 5.0}  # exact in the float32 of a new neuron
SURROGATE = FastSigmoid(slope=SETTINGS["kappa"])
LEVELS, UNIT = 2, 0.375  # payloads up to 3; q is exact in the float32 of a new neuron


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _adaptive_example(g: Generator) -> Tensors:
    known = {"I": 1.5 * normal(g, STEPS, NEURONS) + 0.6, "o_bar": normal(g, STEPS, NEURONS)}
    return known | {name: _number(value) for name, value in SETTINGS.items()}


def _adaptive(v: Tensors) -> Tensors:
    neuron = ALIF(
        v_threshold=SETTINGS["theta"], leak=SETTINGS["lam"], adaptation=SETTINGS["beta"], adaptation_leak=SETTINGS["rho"],
        surrogate=SURROGATE,
    ).double()  # fmt: skip
    state, spikes = neuron.initial_state(v["I"][0]), []
    for current in v["I"]:
        one, state = neuron.step(current, state)
        spikes.append(one)
    return {"o": torch.stack(spikes)}


def _adaptive_states(known: Tensors) -> Tensors:
    """Potentials, adaptation, slopes and cotangents, step by step from the definition."""
    current, leak, theta, beta, rho = (known[name] for name in ("I", "lam", "theta", "beta", "rho"))
    v = a = torch.zeros_like(current[0])
    found: dict[str, list[Tensor]] = {name: [] for name in ("u", "a", "v", "s")}
    for one in current:
        u = leak * v + one
        x = (u - beta * a) / theta - 1
        spikes, slope = (x > 0).double(), SURROGATE(x, x) / theta
        v = u - theta * spikes
        for name, value in (("u", u), ("a", a), ("v", v), ("s", slope)):
            found[name].append(value)
        a = rho * a + spikes
    p, a_bar, u_bar = [], [torch.zeros_like(v)], [torch.zeros_like(v)]
    for t in reversed(range(len(current))):
        p.append((known["o_bar"][t] + a_bar[-1]) * found["s"][t])
        a_bar.append(rho * a_bar[-1] - beta * p[-1])
        u_bar.append(p[-1] + leak * u_bar[-1])
    back = {"p": p[::-1], "a_bar": a_bar[:0:-1], "u_bar": u_bar[:0:-1]}
    return {name: torch.stack(values) for name, values in (found | back).items()}


_SLOPE = Equation(
    "s[n, i]",
    "1 / (theta * (1 + kappa * abs((u[n, i] - beta * a[n, i]) / theta - 1)) ** 2)",
    "replaces the derivative of the step",
)
ADAPTIVE = Card(
    key="alif",
    title="Adaptive leaky integrate-and-fire (ALIF) through time",
    about="Every spike raises the threshold, which falls back slowly. So a spike lowers later ones, and a cotangent "
    "travels back along the adaptation, over times that the leak of the potential has long forgotten. Shown with "
    "the fast sigmoid's slope.",
    symbols={
        "I": "current of step n, neuron i",
        "u": "potential before the spike",
        "a": "adaptation: earlier spikes, each fallen by rho a step",
        "v": "potential after the reset",
        "o": "spike, 0 or 1",
        "lam": "leak",
        "theta": "threshold",
        "beta": "by how much a spike raises the threshold",
        "rho": "factor on the adaptation each step",
        "kappa": "steepness of the surrogate",
        "s": "surrogate derivative of the spike",
        "p": "cotangent where the spike is decided",
        "o_bar": "cotangent of the spikes",
    },
    forward=(
        Equation("u[n, i]", "lam * v[n - 1, i] + I[n, i]", "integrate"),
        Equation("a[n, i]", "rho * a[n - 1, i] + o[n - 1, i]", "adapt"),
        Equation("o[n, i]", "u[n, i] - beta * a[n, i] > theta", "fire"),
        Equation("v[n, i]", "u[n, i] - theta * o[n, i]", "reset; the spike is a constant here"),
    ),
    direct=(
        _SLOPE,
        Equation(
            "p[n, i]",
            "s[n, i] * (o_bar[n, i] - beta * Sum(p[m, i] * rho ** (m - n - 1) * (m > n), m))",
            "a spike raises the threshold of every later step m",
        ),
        Equation(
            "I_bar[n, i]",
            "Sum(p[m, i] * lam ** (m - n) * (m >= n), m)",
            "a current acts, reduced by the leak, on every later step m",
        ),
    ),
    chain=(
        _SLOPE,
        Equation("p[n, i]", "(o_bar[n, i] + a_bar[n + 1, i]) * s[n, i]", "the spike, and the next step's adaptation"),
        Equation("a_bar[n, i]", "rho * a_bar[n + 1, i] - beta * p[n, i]"),
        Equation("u_bar[n, i]", "p[n, i] + lam * u_bar[n + 1, i]"),
        Equation("I_bar[n, i]", "u_bar[n, i]"),
    ),
    example=_adaptive_example,
    wanted=("I",),
    operation=_adaptive,
    outputs=("o",),
    source="Bellec et al. 2018, arXiv:1803.09574",
    more_truth=_adaptive_states,
)


def _graded(v: Tensors) -> Tensors:
    neuron = GradedIF(levels=LEVELS, v_threshold=UNIT * 2 ** (LEVELS - 1), v_init=0.0).double()
    state, payloads, after = neuron.initial_state(v["I"][0]), [], []
    for current in v["I"]:
        one, state = neuron.step(current, state)
        payloads.append(one)
        after.append(state.v.detach())
    return {"o": torch.stack(payloads), "v": torch.stack(after)}


def _graded_states(known: Tensors) -> Tensors:
    """Where a step sends all that is due, and cotangents, step by step from the definition."""
    v, q = known["v"], known["q"]
    w = ((v >= 0) & (v <= q)).double()
    u_bar = [torch.zeros_like(v[0])]
    for t in reversed(range(len(v))):
        u_bar.append(torch.where(w[t] == 1, known["o_bar"][t] / q, u_bar[-1]))
    found = torch.stack(u_bar[::-1])
    return {
        "u": v + q * known["o"],
        "s": known["o"].cumsum(0) - known["o"],
        "w": w,
        "c": w.cumsum(0) - w,
        "u_bar": found[:-1],
        "v_bar": found[1:],
    }


_WHOLE = Equation("w[n, i]", "(v[n, i] >= 0) * (v[n, i] <= q)", "1 where all that was due is sent, so that less than q is left")
GRADED = Card(
    key="graded_if",
    title="Graded integrate-and-fire",
    about="A spike carries an integer o with a sign, and stands for q o. Near almost every current o is constant, so the "
    "cotangent passes straight through the rounding: where a step sends all that is due, a change of the potential is "
    "sent on at once, and nothing of it is left; elsewhere the potential keeps it for later steps.",
    symbols={
        "I": "current of step n, neuron i",
        "u": "potential before the spike",
        "o": "payload, a whole number with a sign",
        "q": "potential that a payload of 1 stands for",
        "k": "the payloads 1, 2, up to the largest",
        "s": "sum of the payloads before step n",
        "v": "potential after the spike, in which the rest waits",
        "w": "1 where the rest is in [0, q], 0 where more was due than a payload holds, or the sum sent would be negative",
        "c": "number of such steps before step n",
        "o_bar": "cotangent of the payloads",
    },
    forward=(
        Equation("u[n, i]", "v[n - 1, i] + I[n, i]", "integrate"),
        Equation("s[n, i]", "Sum(o[m, i] * (m < n), m)", "sent so far"),
        Equation(
            "o[n, i]",
            "Sum((u[n, i] > q * k[m]) - (u[n, i] < q * (1 - k[m])) * (s[n, i] >= k[m]), m)",
            "as often as q fits below u; below 0, as much back as lifts u to 0, and no more than was sent",
        ),
        Equation("v[n, i]", "u[n, i] - q * o[n, i]", "the rest is kept"),
    ),
    direct=(
        _WHOLE,
        Equation("c[n, i]", "Sum(w[m, i] * (m < n), m)"),
        Equation(
            "I_bar[n, i]",
            "Sum(o_bar[m, i] * w[m, i] * (m >= n) * (c[m, i] == c[n, i]), m) / q",
            "a current is sent at the first step m, from its own on, that sends all that is due",
        ),
    ),
    chain=(
        _WHOLE,
        Equation("v_bar[n, i]", "u_bar[n + 1, i]", "the rest is carried on"),
        Equation(
            "u_bar[n, i]", "w[n, i] * o_bar[n, i] / q + (1 - w[n, i]) * v_bar[n, i]", "through the payload, else through the rest"
        ),
        Equation("I_bar[n, i]", "u_bar[n, i]"),
    ),
    example=lambda g: {
        "I": 1.5 * normal(g, STEPS, NEURONS) + 0.4,
        "o_bar": normal(g, STEPS, NEURONS),
        "q": _number(UNIT),
        "k": torch.arange(1.0, 2**LEVELS, dtype=torch.float64),
    },
    wanted=("I",),
    operation=_graded,
    outputs=("o",),
    source="spikeprop.snn.signed; Bengio et al. 2013, arXiv:1308.3432; Wang et al. 2022, Signed Neuron with Memory",
    more_truth=_graded_states,
)

CARDS: tuple[Card, ...] = (ADAPTIVE, GRADED)
