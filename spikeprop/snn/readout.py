"""ReadoutSchedule: from when on the output of a simulation counts, and whether the simulation starts once more.

Two calibrators need more than the plain sum over all steps. A delayed readout takes off what was accumulated in the first steps,
whose spikes were fired before the network has settled. A run beforehand (Hao et al. 2023; ``snn/offset.py``) starts the
simulation once more after some steps, from potentials shifted by what was learnt in them. T includes the steps of both.

Suffix legend: t steps of a chunk, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, NeuronState
from spikeprop.snn.hooks import refuse_absent
from spikeprop.snn.leaving import Leaving
from spikeprop.snn.offset import shifted_start


class ReadoutSchedule(nn.Module):
    """Saved in the checkpoint. Unless set, the output is the sum over all steps ("trivial").

    Attributes:
        delay: buffer, steps that pass before the output counts.
        pre_run: buffer, steps after which the simulation starts once more.
    """

    delay: Tensor
    pre_run: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("delay", torch.tensor(0))
        self.register_buffer("pre_run", torch.tensor(0))

    def set(self, *, delay: int = 0, pre_run: int = 0) -> None:
        """Delay the readout, or run beforehand; what is not given is off."""
        self.delay.fill_(delay)
        self.pre_run.fill_(pre_run)

    @property
    def trivial(self) -> bool:
        """Whether the output is the sum over all steps of one run."""
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
