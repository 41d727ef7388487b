"""LayerDynamics: what a layer makes of its summed current, step after step, with explicit state.

Integrate-and-fire neurons (``snn/neuron.py``), max pooling of spikes (``snn/pooling.py``) and the readout implement it side by
side. Converters, calibrators, exporters and evaluation ask a layer through it and need not know which kind it is.

A new neuron defines ``step`` in plain torch, and ``initial_state`` where it starts elsewhere than at 0 or has a state of its own.
It trains with ``spike``, which has the surrogate's derivative:

    class Floored(Neuron):  # its potential does not fall below minus the threshold
        def step(self, current, state):
            u = torch.maximum(self.leak * state.v + current, -self.v_threshold)
            since = self.tracked(state.since, u)  # None where no gradient reads it
            spikes = spike(u, self.v_threshold, self.surrogate, since)
            after = None if since is None else advance_since(since, spikes)
            return spikes, NeuronState(self.after_reset(u, spikes), after)

The packed engine runs it between its own kernels, forward and, where autograd passes through ``step``, backward.
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from spikeprop.snn.hooks import global_hooks, untouched
from spikeprop.snn.in_place import called_in_place


class NeuronState(NamedTuple):
    """State of one layer.

    Attributes:
        v: potential; of max pooling the counts of its inputs.
        since: steps since the last spike; None where nothing reads it.
        sent: spikes sent less spikes taken back; None for neurons that take none back.
    """

    v: Tensor
    since: Tensor | None
    sent: Tensor | None = None


def map_state(change: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with ``change`` made to each of its tensors."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, tuple | list):
        parts = [map_state(change, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if isinstance(state, dict):
        return {key: map_state(change, value) for key, value in state.items()}
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: map_state(change, getattr(state, f.name)) for f in fields(state)})
    return state


Made = TypeVar("Made")


class _Constructed(ABCMeta):
    """Refuses an instance whose constructor left out that of its base class: torch's error names neither."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """Of the class, as recipes and help read it: that of its constructor, not of the function below."""
        _, *own = inspect.signature(cls.__init__).parameters.values()
        return inspect.Signature(own)

    def __call__(cls: type[Made], *args: Any, **kwargs: Any) -> Made:
        try:
            made = super().__call__(*args, **kwargs)  # type: ignore[misc]
        except AttributeError as error:
            if "before Module.__init__() call" not in str(error):
                raise
            raise TypeError(f"{cls.__name__}.__init__ calls super().__init__(...) first: {error}") from error
        if "_modules" not in vars(made):
            raise TypeError(f"{cls.__name__}.__init__ does not call super().__init__(...), which a neuron needs: call it first")
        return made


class LayerDynamics(nn.Module, metaclass=_Constructed):
    """What a layer sends for its summed current. A subclass defines ``step``, or ``run`` where it has a way for several at once.

    Attributes:
        passes_on: it has no threshold of its own: what it sends has the size and the sign of what its sources send.
        signed: it sends negative numbers as well.
        rectify: the sum that it sends does not fall below 0; without, it stands for the identity.
        arithmetic: it sends real numbers, which need arithmetic on the chip (``snn/arithmetic.py``).
        differential: what it sends corrects the running mean of what it sent (``snn/differential.py``); its readers decode.
        payload_bits: of the largest number that a spike carries, without the sign.
    """

    passes_on: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    rectify: bool = True
    arithmetic: ClassVar[bool] = False
    differential: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        if type(self).run is LayerDynamics.run and type(self).step is LayerDynamics.step:
            raise TypeError(f"{type(self).__name__} defines neither step(current, state) nor run(currents, state)")

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        """Advance over several steps: currents (T, B, ...) to what is sent (T, B, ...)."""
        sent = []
        for current in currents:
            one, state = self.stepped(current, state)
            sent.append(one)
        return torch.stack(sent), state

    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        """Advance one step: current (B, ...) to what is sent (B, ...).

        A function of the two and of parameters alone, each sample for itself: what lasts longer than a step is in the state, a
        ``NeuronState``, or any tuple or dataclass of tensors and None.
        """
        sent, state = self.run(current.unsqueeze(0), state)
        return sent.squeeze(0), state

    def forward(self, current: Tensor, state: Any = None) -> Any:
        """``step``; without a state what the neuron sends where it stands in a module (``snn/in_place.py``)."""
        return self.stepped(current, state) if state is not None else called_in_place(self, current)

    def stepped(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        """``step``, whose result is checked: two rows of spikes alone would be taken for spikes and a state.

        Raises:
            TypeError: it returns something else than (spikes, state).
        """
        found: Any = self.step(current, state)
        if not (isinstance(found, tuple | list) and len(found) == 2 and isinstance(found[0], Tensor)):
            what = f"{len(found)} values" if isinstance(found, tuple | list) and len(found) != 2 else f"a {type(found).__name__}"
            raise TypeError(
                f"{type(self).__name__}.step returned {what}; it returns (spikes, state): what is sent (batch, ...), and the "
                "state after the step, such as NeuronState(v, since)"
            )
        return found[0], found[1]

    def advance(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        """``run``; step by step through ``__call__`` where hooks or another ``forward`` or ``step`` are to be heard."""
        if not self._is_watched():
            return self.run(currents, state)
        sent = []
        for current in currents:
            one, state = self(current, state)
            sent.append(one)
        return torch.stack(sent), state

    def _is_watched(self) -> bool:
        kind = type(self)
        of_base = kind.forward is LayerDynamics.forward and kind.step is LayerDynamics.step
        return not (of_base and untouched(self)) or global_hooks()

    def initial_state(self, current: Tensor) -> NeuronState:
        """State before the first step, for one step's current (B, ...)."""
        return NeuronState(torch.zeros_like(current), None)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what is sent for one sample, for that of its current."""
        return shape

    def activation(self, total: Tensor, ceiling: Tensor | None) -> Tensor:
        """The ANN's activation that the layer stands for, of its pre-activation (B, ...); ceiling: where it is clipped."""
        return total

    def connected(self, values: Tensor) -> Tensor:
        """Sum of the current's values (T, B, ...) that each neuron reads."""
        return values

    @property
    def payload_bits(self) -> int:
        return 1

    @property
    def payload(self) -> int:
        """The largest number that a spike carries."""
        return 2**self.payload_bits - 1

    @property
    def spike_size(self) -> Tensor:
        """Potential that a spike of 1 stands for: a number, or broadcastable to one sample."""
        return torch.ones(())

    @property
    def head_start(self) -> Tensor:
        """Potential before the first step, as a fraction of ``spike_size``."""
        return torch.zeros(())


class ReadoutDynamics(LayerDynamics):
    """The last layer without neurons: its value at a step is its current, which has no leak, threshold or reset."""

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        return currents, state
