"""What ``quantize`` refuses: integers that do not stand for the network.

A layer's errors are relative: weights (root mean square; of several connections the mean by their largest currents); and
thresholds, biases (to the neuron's threshold; of the readout, to its largest current), and what shifts down drop where exponents
are below -1 (``dropped``), each the mean over the neurons, of which one counts 1 at most (a channel that is dead in the ANN can
have a tiny threshold). Their sum is at most WORST. Errors of a quarter of the weights' size are what three bits leave; trained
networks lose little up to there and soon all of it beyond (a 784-128-10 MLP on MNIST: 96.7 % in float; in integers 96.7 % at an
error of 0.04, 11.3 % at 1). Beside the sum, some losses are refused whatever their share of it: connections and neurons that
matter and whose weights all became 0, a start potential or an adaptation beyond 24 bits, and a leak whose effect over the
simulation is off by more than WORST.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import DECAY_UNITY, IntegerPopulation, by_entry
from spikeprop_hardware.network import Population

WORST = 0.25  # sum of a layer's relative errors
WORST_ROWS = 0.3  # mean over neurons of the error of their weights, each relative to its own
NEGLIGIBLE = 0.01  # largest current of a connection that may become 0, relative to the threshold
STEPS = 100  # that a leak acts for, where the number of steps is not known


def check_layer(
    p: Population, q: IntegerPopulation, limits: list[float], factors: list[float], steps: int | None, narrow: bool = False
) -> None:
    """Refuse a layer that its integers do not stand for.

    Args:
        p: the layer in real numbers.
        q: the same in integers.
        limits: the largest value that each connection delivers.
        factors: what a value of 1 arrives as, by connection; other than 1 for real-valued input.
        steps: of a simulation, where they are known.
        narrow: weights have fewer than 8 bits because the caller asked for that, so that their errors are reported only.

    Raises:
        HardwareError: naming the layer, the cause and what to do.
    """
    _check_zeros(p, q, limits, narrow)
    errors = layer_errors(p, q, limits, factors)
    if narrow:
        del errors["weights"]
    if sum(errors.values()) > WORST:
        worst = max(errors, key=lambda key: errors[key])
        raise HardwareError(
            f"layer {p.name!r} cannot be held in the chip's integers: its {worst} would be off by {100 * errors[worst]:.3g} % "
            f"(with all other errors {100 * sum(errors.values()):.3g} %; at most {100 * WORST:g} % are accepted); "
            f"{_remedy(worst, p, limits)}"
        )
    rows = 0.0 if narrow else _row_error(p, q, limits, factors)
    if rows > WORST_ROWS:
        raise HardwareError(
            f"layer {p.name!r} cannot be held in the chip's integers: relative to their own weights, its neurons' weights would "
            f"be off by {100 * rows:.3g} % in the mean (at most {100 * WORST_ROWS:g} %), since those of some are "
            f"far smaller than others'; {_remedy('weights', p, limits)}"
        )
    _check_start(p, q)
    _check_leak(p, q, steps or STEPS)


def _weight_error(p: Population, q: IntegerPopulation, limits: list[float], factors: list[float]) -> float:
    """The mean of the connections' errors by what they can bring."""
    total = wrong = 0.0
    for c, held, limit, x in zip(p.connections, q.connections, limits, factors):
        size = float(np.linalg.norm(c.matrix.data))
        if size:
            brings = float(abs(c.matrix).sum(axis=1).max()) * limit
            back = held.real().data * by_entry(x / q.scale, c.matrix)
            total += brings
            wrong += brings * float(np.linalg.norm(back - c.matrix.data)) / size
    return wrong / total if total else 0.0


def _row_error(p: Population, q: IntegerPopulation, limits: list[float], factors: list[float]) -> float:
    """The mean over the neurons that can fire, each relative to its own weights: a norm over the layer hides small rows."""
    wrong = square = np.zeros(len(p.bias))
    for c, held, limit, x in zip(p.connections, q.connections, limits, factors):
        off = c.matrix.astype(np.float64)
        off.data = held.real().data * by_entry(x / q.scale, c.matrix) - c.matrix.data
        wrong = wrong + limit**2 * off.power(2).sum(axis=1).A1
        square = square + limit**2 * c.matrix.power(2).sum(axis=1).A1
    reach = _reach(p, limits)
    matters = (square > 0) & (reach > (NEGLIGIBLE * reach.max(initial=0.0) if p.theta is None else p.theta))
    return float(np.minimum(np.sqrt(wrong[matters] / square[matters]), 1.0).mean()) if matters.any() else 0.0


def layer_errors(p: Population, q: IntegerPopulation, limits: list[float], factors: list[float]) -> dict[str, float]:
    """Of weights, biases, sums and thresholds; arguments as of ``check_layer``."""
    norm = np.full(len(p.bias), _reach(p, limits).max(initial=0.0) or 1.0) if p.theta is None else p.theta
    bias = (q.bias.astype(np.float64) * 2.0**q.bias_exponent) * q.unit - p.bias
    off = {"biases": np.abs(bias) / norm, "sums": sum(dropped(c.exponent) for c in q.connections) / q.scale / norm}
    if p.theta is not None and q.theta is not None:
        off["thresholds"] = np.abs(q.theta / q.scale / p.theta - 1)
    return {"weights": _weight_error(p, q, limits, factors)} | {what: float(np.minimum(e, 1.0).mean()) for what, e in off.items()}


def dropped(exponent: int | np.ndarray) -> Any:
    """What (2 * sum) >> -exponent rounds away, in the mean over all sums: nothing at -1, which undoes the 2; at most 0.5."""
    return np.maximum(0.0, 0.5 - 2.0 ** np.asarray(exponent, np.float64))


def _check_zeros(p: Population, q: IntegerPopulation, limits: list[float], narrow: bool) -> None:
    """Weights that matter must not all become 0: of the layer, of a connection, and if not ``narrow`` of a neuron."""
    reach = [abs(c.matrix).sum(axis=1).A1 * limit for c, limit in zip(p.connections, limits)]
    theta = np.full(len(p.bias), np.max(np.sum(reach, axis=0), initial=0.0)) if p.theta is None else p.theta
    for c, held, most in zip(p.connections, q.connections, reach):
        if (most > NEGLIGIBLE * theta).any() and not held.matrix.data.any():
            raise HardwareError(
                f"layer {p.name!r} cannot be held in the chip's integers: all {c.matrix.nnz:,} weights of its connection from "
                f"{c.source!r} would become 0; {_remedy('weights', p, limits)}"
            )
    left = np.sum([abs(held.matrix).sum(axis=1).A1 for held in q.connections], axis=0)
    lost = np.flatnonzero((np.sum(reach, axis=0) > theta * (1 if p.theta is not None else NEGLIGIBLE)) & (left == 0))
    if len(lost) and not narrow:
        raise HardwareError(
            f"layer {p.name!r} cannot be held in the chip's integers: the weights of {len(lost):,} of its {len(theta):,} neurons "
            f"(the first is number {lost[0]}) would all become 0; {_remedy('weights', p, limits)}"
        )


def _remedy(worst: str, p: Population, limits: list[float]) -> str:
    if worst == "biases" or np.abs(p.bias).max(initial=0.0) > np.max(_reach(p, limits), initial=0.0):
        return (
            f"its largest bias is {np.abs(p.bias).max():.4g} beside weighted sums of at most {_reach(p, limits).max():.4g}: give "
            "that neuron a smaller bias (a bias far above the threshold only makes it fire at every step)"
        )
    if p.theta is not None and p.theta.max() > 100 * p.theta.min():
        return (
            f"its thresholds reach from {p.theta.min():.4g} to {p.theta.max():.4g}, and one scale holds them all: use one "
            "threshold a layer, or rescale the neurons' weights and thresholds together"
        )
    if max(limits) > 4:
        return (
            f"its inputs may reach {max(limits):.4g}: normalise the inputs (for example images of bytes to mean 0 and deviation "
            "1, or to 0..1) and train with them, or pass the inputs' true input_limit"
        )
    return "make its weights more alike (weight decay, or clip single large weights), or split its connections in two layers"


def _reach(p: Population, limits: list[float]) -> np.ndarray:
    return np.sum([abs(c.matrix).sum(axis=1).A1 * limit for c, limit in zip(p.connections, limits)], axis=0)


def _check_start(p: Population, q: IntegerPopulation) -> None:
    if p.theta is None:
        return
    if p.adaptation is not None and np.rint(p.adaptation / q.unit).max() >= q.limit:
        raise HardwareError(
            f"layer {p.name!r} raises its thresholds by up to {p.adaptation.max():.4g}, {(p.adaptation / p.theta).max():.3g} "
            f"times themselves, beyond the chip's {q.state_bits} bits; neurons then fire once a sample, so use a smaller "
            "adaptation"
        )
    start = np.abs(np.rint(p.v_init * p.theta / q.unit)).max(initial=0.0)
    if start >= q.limit:
        raise HardwareError(
            f"layer {p.name!r} starts at {np.abs(p.v_init).max():.4g} times its threshold, beyond the chip's "
            f"{q.state_bits} bits; v_init is usually between 0 and 1"
        )


def leaks(p: Population, q: IntegerPopulation) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The factors on the potential, the current and what adapts a threshold: their names, as they are and as held."""
    known = (
        ("leak", p.leak, q.decay),
        ("synaptic leak", p.synaptic_leak, q.synaptic_decay),
        ("adaptation leak", p.adaptation_leak, q.adaptation_decay),
    )
    ones = np.ones(len(p.bias))
    return [
        (what, ones if real is None else real, 1 - held / DECAY_UNITY)
        for what, real, held in known
        if held is not None and (real is not None or what == "leak")
    ]


def _check_leak(p: Population, q: IntegerPopulation, steps: int) -> None:
    """What a constant current charges a neuron to within ``steps`` must be about the same."""
    for what, real, held in leaks(p, q):
        wrong = np.abs(charge(held, steps) / charge(real, steps) - 1)
        if wrong.max(initial=0.0) > WORST:
            worst = int(wrong.argmax())
            raise HardwareError(
                f"layer {p.name!r} has a {what} of {np.broadcast_to(real, wrong.shape)[worst]:.7g}, which the chip would hold as "
                f"{held[worst]:.7g} (in 4096ths), and within {steps} steps its potentials would be off by "
                f"{100 * wrong.max():.3g} %; use a leak of 1 (IF), or one that is a multiple of 1/4096"
            )


def charge(leak: np.ndarray, steps: int) -> np.ndarray:
    """1 + leak + ... + leak^(steps - 1)."""
    left = np.maximum(1 - np.asarray(leak, dtype=np.float64), 1e-15)
    return -np.expm1(steps * np.log1p(-np.minimum(left, 1 - 1e-15))) / left
