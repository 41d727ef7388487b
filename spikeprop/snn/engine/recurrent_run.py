"""A layer of ``IF`` or ``LIF`` that reads its own spikes of the step before, through one fully connected layer.

Forward it is an ``IntegrateFireRun`` whose scan adds what the neurons that fired send back. Backward its spikes get a gradient
from its own currents one step later, so a piece goes step by step; the gradient of the feedback's weights is that of any fully
connected layer, whose source are the same words read one step later. What the surrogate needs beyond the spikes is kept or
computed again as without feedback.

Suffix legend: T all steps, K steps of a chunk or piece, B batch, S positions (1), C channels, W words.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spikeprop.snn.engine.kernels import recurrent
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import word_count
from spikeprop.snn.engine.layer_run import IntegrateFireRun, SliceContext
from spikeprop.snn.engine.layout import GradientAccumulator
from spikeprop.snn.engine.source_values import SourceValues
from spikeprop.snn.engine.synapse_run import SynapseRun
from spikeprop.snn.engine.weighted_run import LinearSynapseRun
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.surrogate import STDB

FED_BACK = "fed back"  # among the sources' values: the layer's own spikes of one step before


class RecurrentRun(IntegrateFireRun):
    """See the module.

    Args:
        neuron, name, shape, synapses, context: see ``IntegrateFireRun``.
        feedback: the run of the synapse from the layer to itself.
    """

    def __init__(
        self,
        neuron: Neuron,
        name: str,
        shape: tuple[int, ...],
        synapses: list[tuple[str, SynapseRun]],
        context: SliceContext,
        feedback: SynapseRun,
    ):
        super().__init__(neuron, name, shape, synapses, context)
        assert isinstance(feedback, LinearSynapseRun)
        self.feedback = feedback
        self.fed: Tensor | None = None  # words of all steps with an empty one before, where they are kept
        self.grad_after: Tensor | None = None  # gradient of the current of the step after those that are done
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

    def _scan(self, current_KBSC: Tensor, v_BSC: Tensor, words_KBSW: Tensor, *, potential: bool) -> int:
        layout, flat = self.feedback.layout, (current_KBSC.flatten(2), v_BSC.flatten(1))
        weight, bias, words_KBW = layout.event_weight, layout.affine.bias_O, words_KBSW.flatten(2)
        return recurrent.scan(*flat, self.parameters, self.last_BSW.flatten(1), weight, bias, words_KBW, potential=potential)

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

    def _synapses_back(
        self, grad_KBSC: Tensor, values: Mapping[str, SourceValues], accumulators: Mapping[str, GradientAccumulator]
    ) -> dict[str, Gradient]:
        found = super()._synapses_back(grad_KBSC, values, accumulators)
        self.feedback.backward(values[FED_BACK], grad_KBSC, None, accumulators[self.feedback.key], False)
        return found
