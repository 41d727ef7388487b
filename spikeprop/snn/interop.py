"""snnTorch's and Norse's neurons and surrogates in our slots, and converted networks rebuilt from them.

In a recipe ``{use: snntorch.Leaky, beta: 0.9}`` or ``{use: norse.torch.LIFBoxCell, tau_mem_inv: 100.0}`` stands where
a Neuron is wanted, and ``{use: snntorch.surrogate.fast_sigmoid, slope: 25}`` or ``{use:
norse.torch.functional.threshold.superspike_fn, alpha: 10.0}`` where a Surrogate is. ``rebuild`` replaces the neurons
of a network by theirs with equal spikes: an independent check of ours.

Where the semantics differ it refuses. snnTorch's Leaky subtracts the threshold from the *next* step's potential,
beta*u - theta*o rather than beta*(u - theta*o): the same for beta = 1 and for reset to zero, not for a leaky neuron
that subtracts. Norse's box neuron scales its current by dt*tau_mem_inv = 1 - leak, so the adapter divides by that;
without a leak it cannot integrate at all.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import ConversionError
from spikeprop.snn.dynamics import NeuronState
from spikeprop.snn.network import SpikingNetwork
from spikeprop.snn.neuron import Neuron, Reset, is_integrate_and_fire
from spikeprop.snn.surrogate import Surrogate, Triangle


class SnnTorchLeaky(Neuron):
    """A ``snntorch.Leaky``; its own surrogate works in the backward pass. The state's ``v`` is snnTorch's ``mem``."""

    def __init__(self, **settings: Any):
        import snntorch

        inner = snntorch.Leaky(**settings)
        if inner.reset_mechanism not in ("subtract", "zero"):
            raise ValueError(f"reset_mechanism {inner.reset_mechanism!r}: use 'subtract' or 'zero'")
        reset: Reset = inner.reset_mechanism  # type: ignore[assignment]
        super().__init__(float(inner.threshold), float(inner.beta), reset, 0.0, Triangle())
        self.inner = inner

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        self.inner.threshold = self.v_threshold  # type: ignore[assignment]
        mem, spikes = state.v, []
        for current in currents:
            spike, mem = self.inner(current, mem)
            spikes.append(spike.to(current))  # snnTorch's surrogates return float32 whatever comes in
        return torch.stack(spikes), NeuronState(mem, None)


class NorseLIFBox(Neuron):
    """A ``norse.torch.LIFBoxCell``, its current divided by dt*tau_mem_inv so that v is in our units.

    Args:
        tau_mem_inv: 1/tau in 1/s; the leak is 1 - dt*tau_mem_inv.
        dt: time step in s.
        v_th: threshold.
        reset: "zero" (Norse's default) or "subtract".
        method, alpha: Norse's surrogate.
    """

    def __init__(
        self,
        *,
        tau_mem_inv: float = 100.0,
        dt: float = 0.001,
        v_th: float = 1.0,
        reset: Reset = "zero",
        method: str = "super",
        alpha: float = 100.0,
    ):
        if not 0 < dt * tau_mem_inv <= 1:
            raise ValueError(f"dt*tau_mem_inv is {dt * tau_mem_inv:g}; the leak 1 - dt*tau_mem_inv must lie in [0, 1)")
        super().__init__(v_th, 1 - dt * tau_mem_inv, reset, 0.0, Triangle())
        self.tau_mem_inv, self.dt, self.method, self.alpha = tau_mem_inv, dt, method, alpha

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        from norse.torch import LIFBoxCell, LIFBoxFeedForwardState, LIFBoxParameters
        from norse.torch.functional.reset import reset_subtract, reset_value

        like = {"dtype": currents.dtype, "device": currents.device}
        parameters = LIFBoxParameters(
            tau_mem_inv=torch.tensor(self.tau_mem_inv, **like),
            v_leak=torch.tensor(0.0, **like),
            v_th=self.v_threshold,
            v_reset=torch.tensor(0.0, **like),
            method=self.method,
            alpha=torch.tensor(self.alpha, **like),
            reset_method=reset_subtract if self.reset == "subtract" else reset_value,
        )
        cell = LIFBoxCell(p=parameters, dt=self.dt)
        inner, spikes = LIFBoxFeedForwardState(v=state.v), []
        for current in currents / (self.dt * self.tau_mem_inv):
            spike, inner = cell(current, inner)
            spikes.append(spike)
        return torch.stack(spikes), NeuronState(inner.v, None)


@dataclass(frozen=True, kw_only=True)
class ForeignSurrogate(Surrogate):
    """A spike function of another library as a Surrogate: its derivative is asked of autograd.

    Attributes:
        function: spike function of x with a surrogate derivative of its own.
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, since: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(probe).sum(), probe)
        return slope


def adapt(found: Any, base: type) -> Callable[..., Any] | None:
    """What makes a component of type ``base`` from a foreign class or function, or None; carries ``adapts`` for its signature.

    A network's file may name these, so no others are taken: a library's other functions may do anything.
    """
    home, name = getattr(found, "__module__", "") or "", getattr(found, "__name__", "")
    make: Callable[..., Any]
    if base is Neuron and home.startswith("snntorch.") and name == "Leaky":
        make, signature = functools.partial(SnnTorchLeaky), found
    elif base is Neuron and home.startswith("norse.") and name == "LIFBoxCell":
        make, signature = functools.partial(NorseLIFBox), NorseLIFBox
    elif base is Surrogate and home == "snntorch.surrogate" and callable(found):
        make, signature = functools.partial(_snntorch_surrogate, found), found
    elif base is Surrogate and home.startswith("norse.torch.functional.") and callable(found):
        make, signature = functools.partial(_norse_surrogate, found), _later_parameters(found)
    else:
        return None
    make.adapts = signature  # type: ignore[attr-defined]
    return make


def rebuild(network: SpikingNetwork, library: str) -> SpikingNetwork:
    """The network with its neurons replaced by another library's, giving the same spikes.

    Args:
        network: left as it is.
        library: "snntorch" or "norse".

    Raises:
        ConversionError: a neuron whose semantics that library does not have.
    """
    makers = {"snntorch": _as_snntorch, "norse": _as_norse}
    if library not in makers:
        raise ConversionError(f"no neurons of {library!r}; use one of {', '.join(makers)}")
    rebuilt = copy.deepcopy(network)
    for name, layer in rebuilt.named_layers():
        if isinstance(layer.neuron, Neuron):
            kind = type(layer.neuron).__name__
            if layer.neuron.signed:
                raise ConversionError(f"layer {name!r} takes spikes back ({kind}), which {library}'s neurons do not; use IF")
            if not is_integrate_and_fire(layer.neuron):
                raise ConversionError(f"layer {name!r} has neurons {kind}; {library}'s replace IF and LIF alone")
            if (layer.neuron.v_init != 0).any():
                started = float(layer.neuron.v_init.max())
                raise ConversionError(f"layer {name!r} starts at v_init={started:g}; {library}'s neurons start at 0")
            foreign = makers[library](name, layer.neuron).to(layer.neuron.v_threshold.device)
            foreign.v_threshold = layer.neuron.v_threshold.detach().clone()
            foreign.leak = layer.neuron.leak.detach().clone()
            layer.neuron = foreign
    return rebuilt


def _as_snntorch(name: str, neuron: Neuron) -> Neuron:
    leak = neuron.leak.detach().double()
    if neuron.reset == "subtract" and bool((leak != 1).any()):
        raise ConversionError(
            f"layer {name!r} leaks and subtracts: snnTorch's Leaky has beta*u - theta*o where ours is leak*(u - theta*o), "
            "so spikes would differ; use IF, or reset='zero'"
        )
    return SnnTorchLeaky(beta=leak, reset_mechanism=neuron.reset)


def _as_norse(name: str, neuron: Neuron) -> Neuron:
    leak = float(neuron.leak.detach().double())
    if leak == 1:
        raise ConversionError(
            f"layer {name!r} has no leak: Norse's box neuron scales its current by 1 - leak, which is 0; use LIF"
        )
    return NorseLIFBox(tau_mem_inv=(1 - leak) / 0.001, dt=0.001, reset=neuron.reset)


def _snntorch_surrogate(factory: Callable[..., Any], **settings: Any) -> Surrogate:
    return ForeignSurrogate(function=factory(**settings))


def _norse_surrogate(function: Callable[..., Any], **settings: Any) -> Surrogate:
    tensors = {k: torch.tensor(float(v)) for k, v in settings.items()}
    return ForeignSurrogate(function=functools.partial(function, **tensors))


def _later_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose signature is that of ``function`` without its first parameter, the potential."""
    import inspect

    def described() -> None: ...

    parameters = list(inspect.signature(function).parameters.values())[1:]
    described.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return described
