"""A layer that reads its own spikes of the step before through one fully connected layer: ``IF``, ``LIF``, ``CubaLIF``, ``ALIF``.

Forward it is an ``IntegrateFireRun``, or a ``StatefulRun``, whose scan adds what the neurons that fired send back. Backward its
spikes get a gradient from its own currents one step later, so a piece goes step by step; the gradient of the feedback's weights
is that of any fully connected layer, whose source are the same words read one step later. What the surrogate needs beyond the
spikes is kept or computed again as without feedback.

Suffix legend: T all steps, K steps of a chunk or piece, B batch, S positions (1), C channels, W words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spikeprop.snn.engine.kernels import dense, recurrent, stateful
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.stateful import StatePair
from spikeprop.snn.engine.kernels.words import word_count
from spikeprop.snn.engine.layer_run import IntegrateFireRun, SliceContext
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.source_values import SourceValues
from spikeprop.snn.engine.state_run import StatefulRun
from spikeprop.snn.engine.synapse_run import SynapseRun
from spikeprop.snn.engine.weighted_run import LinearSynapseRun
from spikeprop.snn.surrogate import STDB

FED_BACK = "fed back"  # among the sources' values: the layer's own spikes of one step before


class FedBackRun(IntegrateFireRun):
    """What the two kinds share: the spikes of one step before, kept as they are, and the gradient of the feedback's weights.

    Args:
        args: see the run that it is.
        feedback: the run of the synapse from the layer to itself.
    """

    def __init__(self, *args: Any, feedback: SynapseRun):
        assert isinstance(feedback, LinearSynapseRun)
        self.feedback = feedback
        self.fed: Tensor | None = None  # words of all steps with an empty one before, where they are kept
        self.grad_after: Tensor | None = None  # gradient of the current of the step after those that are done
        super().__init__(*args)
        self._begin_again()

    def _begin_again(self) -> None:
        size = (len(self.context.like_B), self.positions, word_count(self.shape[0]))
        self.last_BSW = torch.zeros(size, dtype=torch.int32)

    # forward ------------------------------------------------------------------------------------------------------------------

    def held_words(self, begin: int, steps: int) -> Tensor:
        if self.words is None and self.context.keep:
            self.fed = torch.empty((self.context.timesteps + 1, *self.last_BSW.shape), dtype=torch.int32)
            self.fed[0] = 0
            self.words = self.fed[1:]
        return super().held_words(begin, steps)

    def start_again(self) -> None:
        super().start_again()
        self._begin_again()

    def keep_rows(self, rows: Tensor, context: SliceContext) -> None:
        super().keep_rows(rows, context)
        self.last_BSW = self.last_BSW[rows]

    def _fire(self, current_KBSC: Tensor, words_KBSW: Tensor) -> int:
        count = super()._fire(current_KBSC, words_KBSW)
        self.last_BSW = words_KBSW[-1].clone()
        return count

    # backward -----------------------------------------------------------------------------------------------------------------

    def backward(
        self,
        gradient: Gradient,
        begin: int,
        values: Mapping[str, SourceValues],
        accumulators: Mapping[str, GradientAccumulator],
    ) -> dict[str, Gradient]:
        assert self.fed is not None
        steps = len(gradient.values_KBPC)
        fed = SourceValues(self.shape, self.fed[begin : begin + steps], values[self.name].count)
        return super().backward(gradient, begin, {**values, FED_BACK: fed}, accumulators)

    def _synapses_back(
        self, grad_KBSC: Tensor, values: Mapping[str, SourceValues], accumulators: Mapping[str, GradientAccumulator]
    ) -> dict[str, Gradient]:
        found = super()._synapses_back(grad_KBSC, values, accumulators)
        self.feedback.backward(values[FED_BACK], grad_KBSC, None, accumulators[self.feedback.key], False)
        return found


class RecurrentRun(FedBackRun):
    """Of ``IF`` and ``LIF``."""

    def _scan(self, current_KBSC: Tensor, v_BSC: Tensor, words_KBSW: Tensor, *, potential: bool) -> int:
        layout, flat = self.feedback.layout, (current_KBSC.flatten(2), v_BSC.flatten(1))
        weight, bias, words_KBW = layout.event_weight, layout.affine.bias_O, words_KBSW.flatten(2)
        return recurrent.scan(*flat, self.parameters, self.last_BSW.flatten(1), weight, bias, words_KBW, potential=potential)

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        kernels, buffers, grad_v_BSC = self.context.kernels, self.context.buffers, self._grad_v()
        trained = self.trained if self.trained is not None and self.trained.any else None
        grad_KBSC = gradient.values_KBPC if gradient.scale_BSC is None else kernels.spread(gradient)
        words, theta_RC = self.held_words(begin, len(grad_KBSC)), self.parameters.theta_RC
        if isinstance(self.surrogate, STDB) and not self.potential_kept:
            slopes = buffers.take(tuple(grad_KBSC.shape), grad_KBSC.dtype)
            recurrent.slopes(self._spike_train(), begin, self.surrogate, theta_RC, slopes.flatten(2))
            self._steps_back(grad_KBSC, slopes, words)
            return slopes
        before_BSC, x_KBSC = self._potentials(len(grad_KBSC), values)
        slopes, grad_v_after = self._slopes(x_KBSC, begin), grad_v_BSC.clone()
        found_KBSC = slopes / theta_RC
        self._steps_back(grad_KBSC, found_KBSC, words)
        if trained is not None:  # from the gradients of the spikes, which are complete now
            trained.add(
                kernels.scan_back_trained(
                    grad_KBSC, grad_v_after, words, slopes, x_KBSC, before_BSC, self.parameters, trained.wanted
                )
            )
        buffers.give(x_KBSC)
        return found_KBSC

    def _steps_back(self, grad_KBSC: Tensor, slopes_KBSC: Tensor, words_KBSW: Tensor) -> None:
        """The gradients of a piece's currents, over ``slopes_KBSC``."""
        flat = (grad_KBSC.flatten(2), slopes_KBSC.flatten(2), self._grad_v().flatten(1))
        recurrent.scan_back(*flat, self.grad_after, self.parameters, self.feedback.weight_ON, words_KBSW.flatten(2))
        self.grad_after = flat[1][0].clone()

    def _potentials(self, steps: int, values: Mapping[str, SourceValues]) -> tuple[Tensor, Tensor]:
        fed = values[FED_BACK].words_KBSW
        assert fed is not None
        self.last_BSW = fed[0]
        return super()._potentials(steps, values)


class RecurrentStatefulRun(FedBackRun, StatefulRun):
    """Of ``CubaLIF`` and ``ALIF``: their kernels step by step."""

    def _scan_state(
        self, current_KBSC: Tensor, state: StatePair, words_KBSW: Tensor, *, potential: bool, s_KBSC: Tensor | None = None
    ) -> int:
        layout, before_BSW, count = self.feedback.layout, self.last_BSW, 0
        for k in range(len(words_KBSW)):
            step = slice(k, k + 1)
            one = current_KBSC[step if len(current_KBSC) > 1 else slice(1)]
            one = one if potential else one.clone()  # it may be read again; potentials take its place
            recurrent.add_fed_back(one[0].flatten(1), before_BSW.flatten(1), layout.event_weight, layout.affine.bias_O)
            second = None if s_KBSC is None else s_KBSC[step]
            count += stateful.scan(one, state, self.stateful, words_KBSW[step], potential=potential, s_KBSC=second)
            before_BSW = words_KBSW[k]
        return count

    def _scan_back(self, gradient: Gradient, begin: int, values: Mapping[str, SourceValues]) -> Tensor:
        fed = values[FED_BACK].words_KBSW
        assert fed is not None
        self.last_BSW = fed[0]
        return super()._scan_back(gradient, begin, values)

    def _steps_back(self, grad_KBSC: Tensor, slopes: Tensor, words_KBSW: Tensor, any_BSW: Tensor) -> Tensor | None:
        assert self.grad is not None
        through, theta_RC = torch.empty_like(grad_KBSC) if self.values.any else None, self.stateful.values_PRC[0]
        for k in range(len(grad_KBSC) - 1, -1, -1):
            step = slice(k, k + 1)
            if self.grad_after is not None:
                grad_KBSC[k] += dense.matmul(self.grad_after, self.feedback.weight_ON).view_as(grad_KBSC[k])
            if through is not None:
                through[k] = grad_KBSC[k] * slopes[k] / theta_RC
            stateful.scan_back(grad_KBSC[step], slopes[step], words_KBSW[step], any_BSW, self.grad, self.stateful)
            self.grad_after = grad_KBSC[k].flatten(1)
        self.grad_after = grad_KBSC[0].flatten(1).clone()
        return through
