"""What the output of a network is: the last layer's values, how they make the output, and from when on they count.

The last layer has a value at each step: its current I_t, or of an ``Integrator`` its potential v_t = leak v_{t-1} + I_t, which
never fires. ``SpikingNetwork.read`` says how the values make the output after t steps: their "sum" (Rathi et al. 2020), their
"mean", the "last" one, or of each output the largest so far, "max". (Sum and mean of an integrator's values: Bellec et al. 2020;
max: Cramer et al. 2020, "The Heidelberg spiking data sets".)

Two calibrators need more than the plain sum over all steps. A delayed readout takes off what was accumulated in the first steps,
whose spikes were fired before the network has settled. A run beforehand (Hao et al. 2023; ``snn/offset.py``) starts the
simulation once more after some steps, from potentials shifted by what was learnt in them. T includes the steps of both.

Suffix legend: T steps, t of a chunk, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, NeuronState, ReadoutDynamics
from spikeprop.snn.hooks import refuse_absent
from spikeprop.snn.leaving import Leaving
from spikeprop.snn.offset import shifted_start

Read = Literal["sum", "mean", "last", "max"]
READS: tuple[Read, ...] = get_args(Read)


@dataclass(frozen=True)
class IntegratorState:
    """Potential v (B, K) after the last step."""

    v: Tensor


class Integrator(ReadoutDynamics):
    """Leaky integrator, v_t = leak v_{t-1} + I_t, v_0 = 0: the last layer of a network that reads potentials. NIR: ``LI``.

    Args:
        leak: factor on the potential each step, in [0, 1].
        trainable: ["leak"], or nothing.
    """

    leak: Tensor

    def __init__(self, *, leak: float = 0.9, trainable: Sequence[Literal["leak"]] = ()):
        super().__init__()
        if not 0 <= leak <= 1:
            raise ValueError(f"leak is {leak}; the factor on the potential lies in [0, 1], 1 meaning no leak")
        if any(name != "leak" for name in trainable):
            raise ValueError(f"trainable holds {list(trainable)}; an integrator has 'leak' to train")
        value = torch.tensor(float(leak))
        if trainable:
            self.register_parameter("leak", nn.Parameter(value))
        else:
            self.register_buffer("leak", value)

    def initial_state(self, current: Tensor) -> Any:
        return IntegratorState(torch.zeros_like(current))

    def run(self, currents: Tensor, state: Any) -> tuple[Tensor, Any]:
        v, values, leak = state.v, [], self.leak.to(currents.dtype)
        for current in currents:
            v = leak * v + current
            values.append(v)
        return torch.stack(values), IntegratorState(v)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Put a trained leak back into [0, 1]; ``fit`` does so after every step."""
        if isinstance(self.leak, nn.Parameter):
            self.leak.clamp_(0.0, 1.0)

    def extra_repr(self) -> str:
        return f"leak={float(self.leak.detach()):.4g}{', trained' if isinstance(self.leak, nn.Parameter) else ''}"


class ReadState(NamedTuple):
    """What the output is so far.

    Attributes:
        steps: that were read.
        total: sum of the values, or the largest, (B, ...).
        output: after the last step (B, ...); of a sequence that has ended, after its own last one.
    """

    steps: int = 0
    total: Tensor | None = None
    output: Tensor | None = None


def read(how: Read, values_tB: Tensor, state: ReadState, lengths: Tensor | None = None) -> tuple[Tensor, ReadState]:
    """The output after each of the next steps (t, B, ...), in an order of sums that does not depend on how time is cut.

    Args:
        how: see the module.
        values_tB: the last layer's.
        state: of the steps before.
        lengths: steps of each sample that count (B,), or None; past them its output stays as it is.
    """
    total, end = state.total, state.steps + len(values_tB)
    if how == "last":
        outputs_tB = values_tB
    elif how == "max":
        first = values_tB[:1] if total is None else torch.maximum(values_tB[:1], total)
        outputs_tB = torch.cat([first, values_tB[1:]]).cummax(0).values
        total = outputs_tB[-1]
    else:
        outputs_tB = torch.cumsum(values_tB if total is None else torch.cat([values_tB[:1] + total, values_tB[1:]]), 0)
        total = outputs_tB[-1]
        if how == "mean":
            count_t = torch.arange(state.steps + 1, end + 1).to(outputs_tB)
            outputs_tB = outputs_tB / count_t.view(-1, *(1,) * (outputs_tB.dim() - 1))
    if lengths is not None:
        outputs_tB = _held(outputs_tB, state, lengths)
    return outputs_tB, ReadState(end, total, outputs_tB[-1])


def _held(outputs_tB: Tensor, state: ReadState, lengths: Tensor) -> Tensor:
    """Outputs that stay as they are after each sample's last step."""
    step_t = torch.arange(state.steps, state.steps + len(outputs_tB), device=lengths.device)
    last_tB = torch.minimum(step_t[:, None], lengths - 1) - state.steps  # below 0 of samples that ended before this chunk
    last_tB = last_tB.view(*last_tB.shape, *(1,) * (outputs_tB.dim() - 2)).expand_as(outputs_tB)
    held_tB = outputs_tB.gather(0, last_tB.clamp(min=0))
    return held_tB if state.output is None else torch.where(last_tB < 0, state.output, held_tB)


class ReadoutSchedule(nn.Module):
    """Saved in the checkpoint. Unless a calibrator sets it, all steps of one run count ("trivial").

    Attributes:
        read: how the values make the output: "sum" (the default), "mean", "last" or "max".
        delay: buffer, steps that pass before the output counts.
        pre_run: buffer, steps after which the simulation starts once more.
    """

    delay: Tensor
    pre_run: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("delay", torch.tensor(0))
        self.register_buffer("pre_run", torch.tensor(0))
        self.read: Read = "sum"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.read != "sum":  # a checkpoint of the plain sum has no such entry
            destination[f"{prefix}read"] = torch.tensor(READS.index(self.read))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        found = state_dict.pop(f"{prefix}read", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if found is not None or f"{prefix}delay" in state_dict:  # part of a checkpoint (strict=False) leaves it as it is
            self.take_read(found)

    def take_read(self, saved: Tensor | None) -> None:
        """Read as a checkpoint says: the number of one of ``READS``, or no entry for the sum.

        Raises:
            ValueError: another number.
        """
        number = 0 if saved is None else int(saved)
        if not 0 <= number < len(READS):
            raise ValueError(f"readout.read is {number}; a checkpoint numbers one of {READS}")
        self.read = READS[number]

    def set(self, *, delay: int = 0, pre_run: int = 0) -> None:
        """Delay the readout, or run beforehand; what is not given is off."""
        self.delay.fill_(delay)
        self.pre_run.fill_(pre_run)

    @property
    def trivial(self) -> bool:
        """Whether all steps of one run count."""
        return not self.restarts and int(self.delay) == 0

    @property
    def restarts(self) -> bool:
        """Whether there is a run beforehand."""
        refuse_absent("readout", self.pre_run)
        return int(self.pre_run) > 0

    def counted_steps(self, timesteps: int) -> int:
        """How many of the steps an output after ``timesteps`` steps is the sum of."""
        skipped = max(int(self.delay), int(self.pre_run))
        return timesteps - skipped if timesteps > skipped else timesteps

    def steps_from(self, start: int, steps: int) -> int:
        """How many of the next ``steps`` steps are done in one, so that none lies on both sides of a new start."""
        pre_run = int(self.pre_run)
        return min(steps, pre_run - start) if start < pre_run else steps

    def starts_again_at(self, start: int) -> bool:
        """Whether the simulation starts once more before step ``start``."""
        return start == int(self.pre_run) > 0

    def shifted(self, dynamics: Mapping[str, LayerDynamics], after: Mapping[str, NeuronState]) -> dict[str, NeuronState]:
        """States for the new start, by layer, from those after the steps beforehand; the output starts anew."""
        return {name: shifted_start(layer, after[name]) for name, layer in dynamics.items()}

    def counted(self, outputs: Iterator[Tensor], leaving: Leaving | None = None) -> Iterator[Tensor]:
        """Accumulated outputs (t, B, K), less the one after ``delay`` steps once more steps have passed.

        Between two of them ``leaving`` may be told which samples go on.
        """
        refuse_absent("readout", self.delay)
        delay = int(self.delay)
        if delay == 0:
            yield from outputs
            return
        before, first = 0, None
        for output_tBK in outputs:
            left = delay - before
            if first is None and left <= len(output_tBK):
                first = output_tBK[left - 1].clone()
                output_tBK = torch.cat([output_tBK[:left], output_tBK[left:] - first])
            elif first is not None:
                output_tBK = output_tBK - first
            before += len(output_tBK)
            yield output_tBK
            if first is not None and leaving is not None and leaving.rows is not None:
                first = first[leaving.rows]
