"""Cards of neurons beyond leaky integrate-and-fire: an adaptive threshold, and graded spikes.

The true derivative of a spike or a payload is 0 almost everywhere. ALIF's spike has a surrogate, and its adaptation passes
gradient on to earlier spikes (Bellec et al. 2018). Payloads have none: what passes is what depends on the current continuously.
The tests compare the lines with autograd through ``spikeprop.snn.adaptive`` and through the payloads of ``spikeprop.snn.signed``.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from spikeprop.plugins.derivatives.card import Card, Equation, Tensors, normal
from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.signed import scan
from spikeprop.snn.surrogate import FastSigmoid

STEPS, NEURONS = 6, 3
SETTINGS = {"lam": 0.875, "theta": 1.0, "beta": 0.375, "rho": 0.75, "kappa": 5.0}  # exact in the float32 of a new neuron
SURROGATE = FastSigmoid(slope=SETTINGS["kappa"])
LARGEST = 3  # payload of two bits


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
    with torch.no_grad():
        potential = torch.zeros_like(v["I"][:1])
        payloads = torch.empty_like(v["I"]).unsqueeze(1)
        scan(v["I"].detach().unsqueeze(1), v["q"].detach(), LARGEST, potential, torch.zeros_like(potential), payloads)
    k = payloads[:, 0]
    return {"k": k, "y": v["q"] * k, "v": (v["I"] - v["q"] * k).cumsum(0)}


def _graded_states(known: Tensors) -> Tensors:
    u = known["v"] + known["q"] * known["k"]
    return {"u": u, "u_bar": known["v_bar"].flip(0).cumsum(0).flip(0)}


GRADED = Card(
    key="graded_if",
    title="Graded integrate-and-fire",
    about="A spike carries an integer k with a sign, and stands for q k. Near almost every current k is constant, so no "
    "gradient passes through it: what is left passes through the potential, and through q. A network of such "
    "neurons is converted, not trained.",
    symbols={
        "I": "current of step n, neuron i",
        "u": "potential before the spike",
        "k": "payload: how often q fits below u; negative where more was sent than was due",
        "q": "potential that a payload of 1 stands for",
        "y": "what the spike stands for",
        "v": "potential after the spike, in which the rest waits",
        "y_bar": "cotangent of what is sent",
        "v_bar": "cotangent of the potential",
    },
    forward=(
        Equation("u[n, i]", "v[n - 1, i] + I[n, i]", "integrate"),
        Equation("y[n, i]", "q * k[n, i]", "fire"),
        Equation("v[n, i]", "u[n, i] - q * k[n, i]", "what was not sent stays"),
    ),
    direct=(
        Equation(
            "I_bar[n, i]",
            "Sum(v_bar[m, i] * (m >= n), m)",
            "without a leak a current stays in every later potential; y does not move",
        ),
        Equation("q_bar", "total(k * (y_bar - I_bar))", "a spike sends q k, and takes as much off this and all later potentials"),
    ),
    chain=(
        Equation("u_bar[n, i]", "v_bar[n, i] + u_bar[n + 1, i]", "through the potential alone"),
        Equation("I_bar[n, i]", "u_bar[n, i]"),
        Equation("q_bar", "Sum(k[n, i] * (y_bar[n, i] - u_bar[n, i]), n, i)"),
    ),
    example=lambda g: {
        "I": normal(g, STEPS, NEURONS) + 0.2,
        "y_bar": normal(g, STEPS, NEURONS),
        "v_bar": normal(g, STEPS, NEURONS),
        "q": _number(0.37),
    },
    wanted=("I", "q"),
    operation=_graded,
    outputs=("y", "v"),
    source="spikeprop.snn.signed; Wang et al. 2022, Signed Neuron with Memory",
    more_truth=_graded_states,
)

CARDS: tuple[Card, ...] = (ADAPTIVE, GRADED)
