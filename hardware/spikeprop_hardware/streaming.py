"""``Stream``: a network that runs while its events arrive; after each step a decision, and when the chip would have it.

Events are counted into steps of ``dt`` as they come; a step runs when its time is over. The chip takes one step for each step of
the stream, of the length

    period = max(dt / stride, step_ms)

with ``step_ms`` the least that its clock allows and ``stride`` the chip's steps in a step of the network (1 without loops over
several layers). Each synapse passes spikes on in the chip's next step, so a decision on what arrived until r is ready at

    s + depth * period,   s = max(r, the chip's last start + stride * period)

where ``depth`` counts the synapses from input to output. Its latency, from r on, grows without end where the chip is slower than
the stream. Decisions are those of ``simulate`` at the same step; nothing of the stream is kept beyond ``window``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.events import binned
from spikeprop_hardware.integer import IntegerNetwork, IntegerPopulation
from spikeprop_hardware.network import ChipNetwork
from spikeprop_hardware.reference import Simulator


@dataclass(frozen=True)
class Decision:
    """What the network says after one step.

    Attributes:
        step: of the stream, from 0.
        label: the largest output.
        output: (classes,) in real units, over the last ``window`` steps, or all since the start.
        sure: the largest output leads the second by ``margin``, in this step and those before it that ``patience`` asks for.
        ready_ms: when the chip has it, in the time of the stream.
        latency_steps: of the chip, from the end of the step's events on.
        latency_ms: the same in time, with the wait for the chip where it is slower than the stream.
    """

    step: int
    label: int
    output: np.ndarray
    sure: bool
    ready_ms: float
    latency_steps: int
    latency_ms: float


class Stream:
    """One stream of events or frames through a network.

    Args:
        network: laid out, or in integers; or a ``Simulator`` of either.
        dt_ms: time of a step of the stream.
        step_ms: the least time of a chip's step, as its makers publish it or as you clock it.
        per_ms: units of the events' t in a millisecond; 1000 for microseconds.
        window: steps that the output counts; default all since the start. Of outputs that are sums or means.
        margin, patience: when a decision is ``sure``: the lead, in units of the output, and for how many steps.

    Raises:
        HardwareError: times that are not positive, or a window of an output that has none.
    """

    def __init__(
        self,
        network: ChipNetwork | IntegerNetwork | Simulator,
        *,
        dt_ms: float,
        step_ms: float,
        per_ms: float = 1000.0,
        window: int | None = None,
        margin: float = 0.0,
        patience: int = 1,
    ):
        self.simulator = network if isinstance(network, Simulator) else Simulator(network, threads=1)
        self.network = self.simulator.network
        if min(dt_ms, step_ms, per_ms, patience, 1 if window is None else window) <= 0:
            raise HardwareError("times, window and patience of a stream are positive")
        if window is not None and self.network.read not in ("sum", "mean"):
            raise HardwareError(f"the output is the {self.network.read} of its values, which has no window; leave window out")
        self.dt_ms, self.step_ms, self.per_ms, self.window = dt_ms, step_ms, per_ms, window
        self.margin, self.patience = margin, patience
        self.period_ms = max(dt_ms / self.network.stride, step_ms)
        self.reset()

    def reset(self) -> None:
        """At rest, before the first step; events that wait for their step are dropped."""
        self._running, self._step, self._started, self._led = self.simulator.start(1), 0, -np.inf, 0
        self._start: float | None = None
        self._waiting: list[np.ndarray] = []
        self._total: Any = 0
        self._largest: Any = None
        self._before: deque[Any] = deque(maxlen=self.window)
        self._delayed: Any = 0

    def push(self, frame: np.ndarray) -> Decision:
        """One step.

        Args:
            frame: what the network reads, of its input's shape.

        Raises:
            HardwareError: another shape, values that integers were not made for, or an output that stopped at the limits of its
                bits, as it does some time where nothing resets it.
        """
        frame = np.asarray(frame)
        if frame.shape != self.network.input_shape or not np.isfinite(frame).all():
            raise HardwareError(f"a step has shape {frame.shape}; the network reads finite numbers of {self.network.input_shape}")
        raw = frame.reshape(1, -1)
        fixed = isinstance(self.network, IntegerNetwork)
        self._running.step(self.network.encode(raw) if isinstance(self.network, IntegerNetwork) else raw.astype(np.float64))
        if fixed and self.network.readout.name in self._running.clipped:
            raise HardwareError(
                f"the output stopped at the limits of its bits in step {self._step}: reset() after each recording, or quantise "
                "for more steps (quantize(..., timesteps=))"
            )
        output = self._output()
        arrived = (self._step + 1) * self.dt_ms
        self._started = max(arrived, self._started + self.network.stride * self.period_ms)
        ready = self._started + self.network.depth * self.period_ms
        ordered = np.sort(output)
        lead = float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else np.inf
        self._led = self._led + 1 if lead >= self.margin else 0
        made = Decision(
            self._step, int(output.argmax()), output, self._led >= self.patience, ready, self.network.depth, ready - arrived
        )
        self._step += 1
        return made

    def feed(self, events: np.ndarray) -> list[Decision]:
        """Decisions on the steps that are over by the last of these events; the rest waits for the next call.

        Args:
            events: structured array as ``binned`` takes it, not before those of earlier calls; the first event of all begins the
                first step.

        Raises:
            HardwareError: as of ``push`` and ``binned``.
        """
        if not len(events):
            return []
        made = []
        self._start = float(events["t"][0]) if self._start is None else self._start
        held = np.concatenate([*self._waiting, events])
        until = self._start + self._step * self.dt_ms * self.per_ms
        if float(events["t"][0]) < until:
            raise HardwareError(
                f"an event is at t = {events['t'][0]:g}, in a step that ended at {until:g}; sort the stream by time"
            )
        binned(held, self.network.input_shape, steps=1, dt=1.0)  # refuses what cannot be, before any step of it runs
        while float(held["t"][-1]) >= (end := self._start + (self._step + 1) * self.dt_ms * self.per_ms):
            now, held = held[held["t"] < end], held[held["t"] >= end]
            made.append(self.push(self._frame(now)))
        self._waiting = [held]
        return made

    def end(self) -> list[Decision]:
        """The decision on the step that has begun, at the end of a stream; none where no event waits."""
        held, self._waiting = self._waiting, []
        return [self.push(self._frame(events)) for events in held if len(events)]

    def _frame(self, events: np.ndarray) -> np.ndarray:
        shape = self.network.input_shape
        return binned(events, shape, steps=1, dt=2 * self.dt_ms * self.per_ms)[0] if len(events) else np.zeros(shape)

    def _output(self) -> np.ndarray:
        """``read_out`` of recording.py, one step at a time, and over a window."""
        network, unit = self.network, 1.0
        readout = network.readout
        if isinstance(readout, IntegerPopulation):
            unit = readout.unit
        value = self._running.potentials[0].astype(np.int64 if isinstance(readout, IntegerPopulation) else np.float64)
        if network.read == "last":
            return value * unit
        if network.read == "max":
            new = self._step <= network.readout_from
            self._largest = value if new or self._largest is None else np.maximum(self._largest, value)
            return self._largest * unit
        self._total = value.copy() if network.accumulates else self._total + value
        past, count = 0, self._step + 1
        if self._step == network.readout_from - 1:
            self._delayed = self._total
        if self._step >= network.readout_from:
            past, count = self._delayed, count - network.readout_from
        if self.window is not None and count > self.window:
            past, count = self._before[0], self.window
        if self.window is not None:
            self._before.append(self._total)
        found = (self._total - past) * unit
        return found / count if network.read == "mean" else found
