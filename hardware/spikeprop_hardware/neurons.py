"""What a node of neurons means in discrete time: one Euler step of NIR's continuous equations, a factor on the current put away.

NIR's neurons are continuous and reset to ``v_reset``. A step of length dt is

    LIF      v = leak v + f I              leak = 1 - dt/tau, f = r dt/tau; a spike where v > v_threshold
    IF       v = v + f I                   f = r
    CubaLIF  i = s i + g S;  v = leak v + f i    s = 1 - dt/tau_syn, g = w_in dt/tau_syn; leak, f from tau_mem and r
    LI, I, CubaLI   the same without spikes: the potential is what the network's output reads

NIR does not say whether v reads the current before or after its step: here after, as Lava's LIF and snnTorch do (Norse: before).
Everything is linear up to the threshold, so a factor f (f g of a CubaLIF) goes into it: v/f fires above v_threshold/f. An
integrator has no threshold, and its factor goes into the weights before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import nir
import numpy as np

from spikeprop_hardware.errors import NirError
from spikeprop_hardware.graph import ALIF, MOST_LEVELS, GradedIF, StepLIF


class NeuronParameters(NamedTuple):
    """Neurons of a node; arrays are float64, of the layer's shape or of one number for all.

    Attributes:
        theta: what a spike of 1 takes off the potential, positive: the threshold, or the smallest level.
        leak: factor on the potential in each step, from 0 to 1.
        v_init: start potential as a fraction of theta.
        reset: "subtract" or "zero".
        levels: of graded neurons; 0 of others, which send ones.
        rectify: no more is taken back than was sent.
        synaptic_leak: factor on the current in each step, where it outlives its step.
        adaptation: by how much a spike raises the threshold, where it does.
        adaptation_leak: factor on that in each step.
    """

    theta: np.ndarray
    leak: np.ndarray
    v_init: np.ndarray
    reset: str = "subtract"
    levels: int = 0
    rectify: bool = True
    synaptic_leak: np.ndarray | None = None
    adaptation: np.ndarray | None = None
    adaptation_leak: np.ndarray | None = None


class IntegratorParameters(NamedTuple):
    """An integrator: factors on the potential and on the current in each step, and one on what arrives, None for 1."""

    leak: np.ndarray
    synaptic_leak: np.ndarray | None
    factor: np.ndarray | None


def neurons_of(node: Any, name: str, dt: float | None = None) -> NeuronParameters:
    """The neurons that a node stands for.

    Args:
        node: one of ``NEURONS``.
        name: of the node, for errors.
        dt: time step in the unit of tau, for a node that does not record one.

    Raises:
        NirError: something that these neurons do not do.
    """
    theta = np.asarray(node.v_threshold, dtype=np.float64)
    if not (theta > 0).all():
        raise NirError(f"node {name!r} has a threshold of {theta.min():.4g}; thresholds are positive")
    if isinstance(node, GradedIF):
        levels, rectify = _graded(node, name)
        return NeuronParameters(
            theta / 2 ** (levels - 1), np.ones(()), np.asarray(node.v_init, np.float64), levels=levels, rectify=rectify
        )
    if isinstance(node, ALIF | StepLIF):
        return _in_steps(node, name, theta)
    metadata = node.metadata or {}
    reset = metadata.get("reset", "zero")
    if reset not in ("subtract", "zero"):
        raise NirError(f"node {name!r} has reset mode {reset!r}; known: 'subtract', 'zero'")
    if np.any(np.asarray(node.v_reset) != 0):
        raise NirError(f"node {name!r} resets to v_reset = {_first(node.v_reset)}; only v_reset = 0 can be expressed")
    leak, synaptic_leak, factor = _dynamics(node, name, dt)
    theta = theta if factor is None else theta / factor
    levels = int(bool(metadata.get("signed", False)))
    if levels and (reset != "subtract" or (leak != 1).any() or synaptic_leak is not None):
        raise NirError(f"node {name!r} is signed, but leaks or resets to zero; signed neurons do neither")
    v_init = np.asarray(metadata.get("v_init", 0.0), dtype=np.float64)
    return NeuronParameters(theta, leak, v_init, reset, levels, synaptic_leak=synaptic_leak)


def integrator_of(node: Any, name: str, dt: float | None = None) -> IntegratorParameters:
    """The integrator that a node of ``INTEGRATORS`` stands for; arguments and errors as of ``neurons_of``."""
    return IntegratorParameters(*_dynamics(node, name, dt))


def _in_steps(node: ALIF | StepLIF, name: str, theta: np.ndarray) -> NeuronParameters:
    """Our own nodes, whose factors are those of one step."""
    of_kind = ("adaptation", "adaptation_leak") if isinstance(node, ALIF) else ("synaptic_leak",)
    numbers: dict[str, np.ndarray] = {}
    for what in ("leak", "to_zero", *of_kind):
        numbers[what], most = np.asarray(getattr(node, what), dtype=np.float64), np.inf if what == "adaptation" else 1.0
        if not ((numbers[what] >= 0) & (numbers[what] <= most)).all():
            raise NirError(f"node {name!r} has {what} = {_first(numbers[what]):.4g}; it must lie in [0, {most:g}]")
    given: dict[str, Any] = {what: numbers[what] for what in of_kind if what != "synaptic_leak" or numbers[what].any()}
    reset = "zero" if int(node.to_zero) else "subtract"
    return NeuronParameters(theta, numbers["leak"], np.asarray(node.v_init, np.float64), reset, **given)


def _graded(node: GradedIF, name: str) -> tuple[int, bool]:
    """Levels, and whether no more is taken back than was sent."""
    for what, least, most in (("levels", 1, MOST_LEVELS), ("rectify", 0, 1)):
        value = np.asarray(getattr(node, what))
        if value.shape or value.dtype.kind not in "iub" or not least <= value <= most:
            raise NirError(f"node {name!r} has {what} = {getattr(node, what)!r}; it is a whole number from {least} to {most}")
    return int(node.levels), bool(node.rectify)


def _dynamics(node: Any, name: str, dt: float | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The leak, that of the synaptic current where there is one, and the factor on the current where it is not 1."""
    r = np.asarray(node.r, dtype=np.float64)
    if isinstance(node, nir.IF | nir.I):
        return np.ones(()), None, _factor(name, r, "r")
    if np.any(np.asarray(node.v_leak) != 0):
        raise NirError(f"node {name!r} leaks to v_leak = {_first(node.v_leak)}; only v_leak = 0 can be expressed")
    metadata = node.metadata or {}
    dt = metadata.get("dt", dt)
    if dt is None:
        kind = type(node).__name__
        raise NirError(f"node {name!r} is a {kind} without a time step; record metadata dt, or pass dt, in the unit of its tau")
    if not isinstance(node, nir.CubaLIF | nir.CubaLI):
        tau = np.asarray(node.tau, dtype=np.float64)
        return _leak(name, dt, tau, metadata.get("leak")), None, _factor(name, r * dt / tau, "r*dt/tau")
    tau, tau_syn = (np.asarray(values, dtype=np.float64) for values in (node.tau_mem, node.tau_syn))
    factor = _factor(name, (r * dt / tau) * (np.asarray(node.w_in, np.float64) * dt / tau_syn), "r*dt/tau_mem*w_in*dt/tau_syn")
    return _leak(name, dt, tau, metadata.get("leak")), _leak(name, dt, tau_syn, metadata.get("synaptic_leak"), "_syn"), factor


def _leak(name: str, dt: float, tau: np.ndarray, exact: Any, which: str = "") -> np.ndarray:
    leak = 1 - dt / tau
    if exact is not None and np.allclose(leak, exact):
        leak = np.asarray(exact, dtype=np.float64)
    if not ((leak >= 0) & (leak <= 1)).all():
        wrong = leak[~((leak >= 0) & (leak <= 1))]
        raise NirError(f"node {name!r} has a leak 1 - dt/tau{which} of {_first(wrong):.4g}; it must lie in [0, 1]")
    return leak


def _factor(name: str, factor: np.ndarray, what: str) -> np.ndarray | None:
    if not (np.isfinite(factor) & (factor > 0)).all():
        wrong = factor[~(np.isfinite(factor) & (factor > 0))]
        raise NirError(
            f"node {name!r} scales its current by {what} = {_first(wrong):.4g}; only a positive factor can be expressed"
        )
    return None if np.allclose(factor, 1) else factor


def _first(values: Any) -> Any:
    return np.ravel(values)[0]
