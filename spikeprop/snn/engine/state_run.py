"""Layers of ``CubaLIF``, ``ALIF`` and ``PLIF`` on packed spikes.

``PLIF`` is a ``LIF`` whose current is scaled, so it has that one's kernels. The two others have a second state, and kernels of
their own (``kernels/state_loops.py``), on the CPU. Their backward pass reads the surrogate's values: those of ``STDB`` follow
from the spikes alone; other surrogates, and trained parameters, need the potentials, kept or computed again as for ``LIF``.

Suffix legend: K steps of a piece, B batch, S positions, C channels, W words, R = S or 1, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.cuba import CubaLIF
from spikeprop.snn.engine.kernels import stateful
from spikeprop.snn.engine.kernels.arguments import SpikeTrain
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.stateful import StatefulParameters, StatePair
from spikeprop.snn.engine.kernels.words import BITS, per_position, same_rows
from spikeprop.snn.engine.layer_run import IntegrateFireRun, SliceContext, _for_each_step, in_shape
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.sizes import KEPT_POTENTIALS
from spikeprop.snn.engine.source_values import SourceValues
from spikeprop.snn.engine.synapse_run import SynapseRun, summed_current
from spikeprop.snn.neuron import PLIF
from spikeprop.snn.surrogate import STDB

Originals: TypeAlias = Mapping[int, nn.Parameter]  # the network's parameters, by the id of the neuron's, which may be copies


class TrainedValues:
    """Gradients of a layer's trained parameters in one simulation of a slice.

    Args:
        values: of the neuron, in the order of the gradients' first axis.
        originals: what the gradients are given to.
        like_RC: for the gradients' shape.
    """

    def __init__(self, values: list[Tensor], originals: Originals, like_RC: Tensor):
        self.parameters = [originals[id(value)] if value.requires_grad else None for value in values]
        self.any = any(p is not None for p in self.parameters)
        self.total_PRC = like_RC.new_zeros(len(values), *like_RC.shape, dtype=torch.float64)

    def grads(self, shape: tuple[int, ...]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Of each that is trained, in its own shape."""
        for parameter, grad_RC in zip(self.parameters, self.total_PRC):
            if parameter is not None:
                yield parameter, in_shape(grad_RC, shape, parameter)


class _OwnRun(IntegrateFireRun):
    """What the runs of this module share."""

    values: TrainedValues

    @property
    def potential_kept(self) -> bool:
        return type(self.surrogate) is not STDB or (self.context.keep and self.values.any)

    def _slopes_of(self, x_KBSC: Tensor | None, begin: int, steps: int, like_BSC: Tensor) -> Tensor:
        """The surrogate's values over a piece, from the spikes or from u/theta - 1."""
        if type(self.surrogate) is STDB and like_BSC.device.type == "cpu":
            return stateful.stdb_slopes(self._searched(), begin, steps, self.surrogate, like_BSC)
        assert x_KBSC is not None
        return self._slopes(x_KBSC, begin)

    def _searched(self) -> SpikeTrain:
        """The spikes of all steps, with memory for what a search for the last ones finds."""
        assert self.words is not None
        if self.train is None:
            words = self.words
            if self.potential_kept:  # nothing has summed the pieces yet
                for first in range(0, len(words), self.piece):
                    self.summary.append(torch.empty_like(words[0]))
                    self.context.kernels.any_of(words[first : first + self.piece], self.summary[-1])
            since_BSC = torch.empty(*words.shape[1:3], BITS * words.shape[3], dtype=torch.int32)
            self.train = SpikeTrain(words, self.summary_MBSW, self.piece, since_BSC)
        return self.train

    def start_again(self) -> None:
        like_B = self.context.like_B
        self.v_BSC = like_B.new_zeros(len(like_B), self.positions, self.shape[0]) + self.start_RC

    def _finish(self, accumulators: Mapping[str, GradientAccumulator]) -> None:
        if self.values.any:
            assert self.grad_v_BSC is not None
            start_RC = self.start_RC / self.parameters.theta_RC  # before the first step the potential is a fraction of theta
            grad_SC = self.grad_v_BSC.sum(0, dtype=torch.float64) * start_RC
            self.values.total_PRC[0] += grad_SC.sum_to_size(self.values.total_PRC.shape[1:])
            for parameter, grad in self.values.grads(self.shape):
                accumulators[self.name].add(parameter, grad)


class PLIFRun(_OwnRun):
    """A layer of ``PLIF``: of ``LIF``, with a scaled current.

    With k = 1/tau = sigmoid(w), leak = 1 - k and u = leak v + k I the gradient of w is leak (sum_t g_u u - g_leak) where the
    current is scaled, and -k leak g_leak where it is not.
    """

    def __init__(
        self,
        neuron: PLIF,
        originals: Originals,
        name: str,
        shape: tuple[int, ...],
        synapses: list[tuple[str, SynapseRun]],
        context: SliceContext,
    ):
        super().__init__(neuron, name, shape, synapses, context)
        self.trained = None
        self.scaled, self.gain_RC = neuron.decay_input, per_position(neuron.gain, shape, context.like_B.dtype)
        self.values = TrainedValues([neuron.v_threshold, neuron.w], originals, self.parameters.theta_RC)

    def current(self, values: Mapping[str, SourceValues]) -> Tensor:
        if not self.scaled:
            return super().current(values)
        total_KBSC, owned = summed_current(self.synapses, values, self.context.buffers, self.constant)
        return total_KBSC.mul_(self.gain_RC) if owned else total_KBSC * self.gain_RC

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        if not self.values.any:
            grad_KBSC = super()._scan_back(gradient, begin, values)
            return grad_KBSC.mul_(self.gain_RC) if self.scaled else grad_KBSC
        assert self.words is not None
        steps, kernels, grad_v_BSC = len(gradient.values_KBPC), self.context.kernels, self._grad_v()
        before_BSC, x_KBSC = self._potentials(steps, values)
        grad_KBSC = kernels.spread(gradient).contiguous()
        slopes = self._slopes_of(x_KBSC, begin, steps, before_BSC)
        words = self.words[begin : begin + steps]
        found = kernels.scan_back_trained(grad_KBSC, grad_v_BSC, words, slopes, x_KBSC, before_BSC, self.parameters, (True, True))
        theta_RC, leak_RC = self.parameters.theta_RC, self.parameters.leak_RC.double()
        of_w = -(1 - leak_RC) * found.leak_RC
        if self.scaled:
            by_u = (grad_KBSC * (x_KBSC + 1)).sum((0, 1), dtype=torch.float64) * theta_RC
            of_w = by_u.sum_to_size(theta_RC.shape) - found.leak_RC
            grad_KBSC = grad_KBSC.mul_(self.gain_RC)
        self.values.total_PRC += torch.stack([found.theta_RC, of_w * leak_RC])
        self.context.buffers.give(x_KBSC)
        return grad_KBSC


class StatefulRun(_OwnRun):
    """A layer of ``CubaLIF`` or ``ALIF`` on the CPU."""

    def __init__(
        self,
        neuron: CubaLIF | ALIF,
        originals: Originals,
        name: str,
        shape: tuple[int, ...],
        synapses: list[tuple[str, SynapseRun]],
        context: SliceContext,
    ):
        super().__init__(neuron, name, shape, synapses, context)
        self.trained = None
        second = [neuron.adaptation_leak, neuron.adaptation] if isinstance(neuron, ALIF) else [neuron.synaptic_leak]
        values = [neuron.v_threshold, neuron.leak, *second]
        rows = same_rows(*(per_position(value, shape, context.like_B.dtype) for value in values))
        values_PRC = torch.stack([*rows, *(torch.zeros_like(rows[0]) for _ in range(4 - len(rows)))])
        self.stateful = StatefulParameters(values_PRC, isinstance(neuron, ALIF), neuron.reset == "zero")
        self.values = TrainedValues(values, originals, rows[0])
        self.state_borders: list[StatePair] = []  # before each piece
        self.seconds: list[Tensor] = []  # second states in each piece, of a simulation of few steps
        self.grad: StatePair | None = None
        self.start_again()

    def start_again(self) -> None:
        super().start_again()
        assert self.v_BSC is not None
        self.state: StatePair = StatePair(self.v_BSC, torch.zeros_like(self.v_BSC))

    def keep_rows(self, rows: Tensor, context: SliceContext) -> None:
        super().keep_rows(rows, context)
        assert self.v_BSC is not None
        self.state = StatePair(self.v_BSC, self.state.s_BSC[rows])

    def _fire(self, current_KBSC: Tensor, words_KBSW: Tensor) -> int:
        context = self.context
        if context.keep and self.potential_kept:
            self.state_borders.append(self.state.clone())
            if context.timesteps <= KEPT_POTENTIALS:
                count, *kept = self._scan_keeping(current_KBSC, self.state, words_KBSW)
                self.potentials.append(kept[0])
                self.seconds.append(kept[1])
                return count
        count = self._scan_state(current_KBSC, self.state, words_KBSW, potential=False)
        context.buffers.give(current_KBSC)
        if context.keep and not self.potential_kept:
            self.summary.append(torch.empty_like(words_KBSW[0]))
            context.kernels.any_of(words_KBSW, self.summary[-1])
        return count

    def _scan_keeping(self, current_KBSC: Tensor, state: StatePair, words_KBSW: Tensor) -> tuple[int, Tensor, Tensor]:
        """Scan a piece and keep everything: spikes, x over the current, second states (empty where nothing is trained)."""
        x_KBSC = _for_each_step(current_KBSC, len(words_KBSW), state.v_BSC.dtype)
        s_KBSC = torch.empty_like(x_KBSC) if self.values.any else None
        count = self._scan_state(x_KBSC, state, words_KBSW, potential=True, s_KBSC=s_KBSC)
        return count, x_KBSC, s_KBSC if s_KBSC is not None else x_KBSC[:0]

    def _scan_state(
        self, current_KBSC: Tensor, state: StatePair, words_KBSW: Tensor, *, potential: bool, s_KBSC: Tensor | None = None
    ) -> int:
        return stateful.scan(current_KBSC, state, self.stateful, words_KBSW, potential=potential, s_KBSC=s_KBSC)

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        assert self.words is not None
        plain = gradient.pool == 1 and gradient.scale_BSC is None  # then its memory is written over
        grad_KBSC = gradient.values_KBPC if plain else self.context.kernels.spread(gradient).contiguous()
        steps, words = len(grad_KBSC), self.words[begin : begin + len(grad_KBSC)]
        if self.grad is None:
            self.grad = StatePair(torch.zeros_like(grad_KBSC[0]), torch.zeros_like(grad_KBSC[0]))
            self.grad_v_BSC = self.grad.v_BSC
        if not self.potential_kept:
            slopes, active = self._slopes_of(None, begin, steps, grad_KBSC[0]), self.active()
            assert active is not None
            self._steps_back(grad_KBSC, slopes, words, active.words_BSW)
            return grad_KBSC
        before = self.state_borders.pop()
        if self.potentials:
            x_KBSC, s_KBSC = self.potentials.pop(), self.seconds.pop()
        else:
            _, x_KBSC, s_KBSC = self._scan_keeping(self.current(values), before.clone(), torch.empty_like(words))
        slopes, every = self._slopes_of(x_KBSC, begin, steps, grad_KBSC[0]), torch.full_like(words[0], -1)
        after = self.grad.clone()
        through = self._steps_back(grad_KBSC, slopes, words, every)
        if through is not None:
            found = stateful.trained_gradients(x_KBSC, s_KBSC, before, grad_KBSC, through, words, after, self.stateful)
            self.values.total_PRC += found[: len(self.values.parameters)]
        self.context.buffers.give(x_KBSC)
        return grad_KBSC

    def _steps_back(self, grad_KBSC: Tensor, slopes: Tensor, words_KBSW: Tensor, any_BSW: Tensor) -> Tensor | None:
        """Gradients of a piece's currents, over those of its spikes; returns the latter times surrogate / theta, if needed."""
        assert self.grad is not None
        through = grad_KBSC * slopes / self.stateful.values_PRC[0] if self.values.any else None
        stateful.scan_back(grad_KBSC, slopes, words_KBSW, any_BSW, self.grad, self.stateful)
        return through
