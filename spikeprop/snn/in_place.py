"""Neurons called where they stand in an ordinary module: while it is traced, and as the plain loop that proves a trace.

``sp.spiking`` reads a module in which neurons stand where a non-linearity would, ``self.lif(self.conv(x))``. A neuron keeps no
state of its own, so such a call has a meaning in two places only: on the meta device, where it has a shape, and inside a
``PlainLoop``, which runs the module step after step and keeps the state of each call. The loop knows nothing of layers, synapses
and the engine: it is the independent witness of what was built.

``Recurrent`` is a neuron whose spikes come back one step later through weights:

    I_t = W o_{t-1} + x_t

Suffix legend: B batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from spikeprop.errors import SimulationError

Call = tuple[str, int]  # the path of a neuron in a module, and which of its calls in a step
Edge = tuple[Call, tuple[int, ...], nn.Module]
_LOOP: ContextVar[PlainLoop | None] = ContextVar("loop", default=None)


def called_in_place(neuron: Any, current_B: Any) -> Tensor:
    """What a neuron that stands in a module sends for its current (B, ...).

    Raises:
        SimulationError: the module was called by itself.
    """
    if not isinstance(current_B, Tensor):
        raise TypeError(f"a neuron reads one tensor, its current (batch, ...), and was given a {type(current_B).__name__}")
    if current_B.is_meta:
        return current_B.new_empty(len(current_B), *neuron.output_shape(tuple(current_B.shape[1:])))
    loop = _LOOP.get()
    if loop is None:
        raise SimulationError(
            f"{type(neuron).__name__} was called without its state: a neuron in a module marks where spikes are made. Make a "
            "network of the module, network = spikeprop.spiking(module, input_shape), and call that: network(x, timesteps)"
        )
    return loop.fired(neuron, current_B)


class PlainLoop:
    """Runs a module with neurons in it, one step after another.

    Args:
        module: with neurons where non-linearities stand.
        feedback: by the call of a neuron, (call of the source, shape of what it sends, operation) of what comes back one step
            later; zeros before the first.

    Attributes:
        sent: by call, what was sent in the last step.
    """

    def __init__(self, module: nn.Module, feedback: Mapping[Call, Sequence[Edge]] | None = None):
        self.module, self.feedback = module, dict(feedback or {})
        self.paths = {inner: path for path, inner in module.named_modules()}
        self.states: dict[Call, Any] = {}
        self.sent: dict[Call, Tensor] = {}
        self._before: dict[Call, Tensor] = {}
        self._calls: Counter[str] = Counter()

    def step(self, x_B: Tensor) -> Any:
        """The module's result for the input of one step (B, ...)."""
        self._calls.clear()
        self._before = dict(self.sent)
        token = _LOOP.set(self)
        try:
            return self.module(x_B)
        finally:
            _LOOP.reset(token)

    def fired(self, neuron: Any, current_B: Tensor) -> Tensor:
        """One call of one neuron."""
        path = self.paths[neuron]
        call = (path, self._calls[path])
        self._calls[path] += 1
        feedback = list(self.feedback.get(call, ()))
        if isinstance(neuron, Recurrent):
            feedback = [(call, neuron.output_shape(tuple(current_B.shape[1:])), neuron.synapse), *feedback]
            neuron = neuron.neuron
        for source, shape, operation in feedback:
            before = self._before.get(source)
            current_B = current_B + operation(current_B.new_zeros(len(current_B), *shape) if before is None else before)
        if call not in self.states:
            self.states[call] = neuron.initial_state(current_B)
        self.sent[call], self.states[call] = neuron.stepped(current_B, self.states[call])
        return self.sent[call]


class Recurrent(nn.Module):
    """Neurons whose spikes come back to their current one step later: I_t = x_t + synapse(o_{t-1}).

    It stands in a module that ``spikeprop.spiking`` reads, and becomes a layer with feedback.

    Args:
        neuron: such as ``LIF()``.
        synapse: from the neurons' spikes to their current, of the same shape, such as ``nn.Linear(n, n, bias=False)``.
    """

    def __init__(self, neuron: nn.Module, synapse: nn.Module):
        super().__init__()
        if not hasattr(neuron, "initial_state"):
            raise ValueError(
                f"Recurrent reads (neuron, synapse), such as Recurrent(LIF(), nn.Linear(n, n)); got {neuron!r} first"
            )
        if not isinstance(synapse, nn.Module):
            n = synapse if isinstance(synapse, int) else "n"
            raise ValueError(f"Recurrent's synapse is {synapse!r}; give a module, for n neurons nn.Linear({n}, {n})")
        self.neuron, self.synapse = neuron, synapse

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what is sent for one sample, for that of its current."""
        neuron: Any = self.neuron
        return neuron.output_shape(shape)

    def forward(self, current_B: Tensor) -> Tensor:
        """What the neurons send, inside a trace or a ``PlainLoop``."""
        return called_in_place(self, current_B)
