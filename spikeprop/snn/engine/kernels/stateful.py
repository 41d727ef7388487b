"""Kernels of neurons with a second state on the CPU: torch tensors in, ``state_loops`` over them on torch's number of threads.

Suffix legend: K steps of a piece, T all steps, B batch, S positions, C channels, W words, R = S or 1, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikeprop.snn.engine.kernels import cpu, state_loops
from spikeprop.snn.engine.kernels.arguments import SpikeTrain
from spikeprop.snn.engine.kernels.cpu import _array, _words, in_ranges
from spikeprop.snn.engine.kernels.words import BITS
from spikeprop.snn.surrogate import STDB


@dataclass(frozen=True)
class StatefulParameters:
    """Parameters of neurons with a second state.

    Attributes:
        values_PRC: threshold, leak, factor on the second state each step, and by how much that state raises the threshold.
        adaptive: the second state is an adaptation, not a current.
        to_zero: reset to zero rather than by subtraction.
    """

    values_PRC: Tensor
    adaptive: bool
    to_zero: bool


@dataclass
class StatePair:
    """Potential and second state (B, S, C), or the gradients of the two, which kernels overwrite."""

    v_BSC: Tensor
    s_BSC: Tensor

    def clone(self) -> StatePair:
        return StatePair(self.v_BSC.clone(), self.s_BSC.clone())

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """With samples and positions on one axis."""
        return _array(self.v_BSC.flatten(0, 1)), _array(self.s_BSC.flatten(0, 1))


def scan(
    current_KBSC: Tensor,
    state: StatePair,
    parameters: StatefulParameters,
    words_KBSW: Tensor,
    *,
    potential: bool,
    s_KBSC: Tensor | None = None,
) -> int:
    """Integrate, fire, reset; writes the words and the state after the last step, returns the number of spikes.

    Args:
        current_KBSC: K steps, or one that is repeated. Where ``potential``, overwritten by x, the surrogate's argument.
        state: before the first step, overwritten by that after the last.
        parameters: of the neurons.
        words_KBSW: where the spikes go.
        potential: keep the potentials.
        s_KBSC: where the second state of each step goes, an adaptation's before, a current's after it.
    """
    current, words, (v, s) = _array(current_KBSC.flatten(1, 2)), _words(words_KBSW.flatten(1, 2)), state.arrays()
    values, kept = _array(parameters.values_PRC), _array((s_KBSC if s_KBSC is not None else current_KBSC).flatten(1, 2))
    how = parameters.adaptive, parameters.to_zero

    def work(first: int, last: int) -> int:
        return state_loops.scan(current, v, s, values, *how, words, potential, kept, s_KBSC is not None, first, last)

    return sum(in_ranges(len(v), work))


def stdb_slopes(train: SpikeTrain, begin: int, steps: int, surrogate: STDB, like_BSC: Tensor) -> Tensor:
    """STDB's derivative (K, B, S, C) in the steps begin..begin + steps."""
    slope_KBSC = like_BSC.new_empty(steps, *like_BSC.shape)
    words, summary = _words(train.words_TBSW.flatten(1)), _words(train.any_MBSW.flatten(1))
    slope = _array(slope_KBSC.flatten(1, 2))
    after = (surrogate.alpha * np.exp(-surrogate.beta * np.arange(max(1, begin)))).astype(slope.dtype)
    fresh, fall, since = slope.dtype.type(surrogate.alpha), slope.dtype.type(math.exp(-surrogate.beta)), train.since_BSC
    found = _array(since.view(-1, BITS))

    def work(first: int, last: int) -> None:
        state_loops.stdb_slopes(words, summary, train.piece, begin, after, fresh, fall, found, slope, first, last)

    in_ranges(slope.shape[1], work)
    return slope_KBSC


def scan_back(
    grad_KBSC: Tensor, slope_KBSC: Tensor, words_KBSW: Tensor, any_BSW: Tensor, after: StatePair, parameters: StatefulParameters
) -> None:
    """Gradient of the currents, over ``grad_KBSC``, which holds that of the spikes, from the surrogate's values.

    after: gradients of the state after the piece, overwritten by those before it; of a current times its factor. any_BSW: words
    that are 0 have derivatives of 0.
    """
    grad, slope = _array(grad_KBSC.flatten(1, 2)), _array(slope_KBSC.flatten(1, 2))
    words, some = _words(words_KBSW.flatten(1, 2)), _words(any_BSW.flatten(0, 1))
    values, (v, s) = _array(parameters.values_PRC), after.arrays()
    how = parameters.adaptive, parameters.to_zero
    in_ranges(len(v), lambda first, last: state_loops.scan_back(grad, slope, words, some, v, s, values, *how, first, last))


def trained_gradients(
    x_KBSC: Tensor,
    s_KBSC: Tensor,
    before: StatePair,
    grad_KBSC: Tensor,
    through_KBSC: Tensor,
    words_KBSW: Tensor,
    after: StatePair,
    parameters: StatefulParameters,
) -> Tensor:
    """Gradients (P, R, C) of the parameters over a piece, in double precision.

    Args:
        x_KBSC, s_KBSC: what ``scan`` left.
        before: state before the piece.
        grad_KBSC: of the currents.
        through_KBSC: of the spikes, as it was given, times surrogate / theta.
        words_KBSW: the spikes.
        after: gradients of the state after the piece.
    """
    theta, leak, decay, weight = parameters.values_PRC
    spikes = cpu.unpack(words_KBSW, x_KBSC.shape[-1], x_KBSC.dtype)
    of_u = grad_KBSC if parameters.adaptive else grad_KBSC - _later(grad_KBSC * decay, after.s_BSC)
    of_v = _later(of_u * leak, after.v_BSC)
    kept = of_v * (1 - spikes) if parameters.to_zero else of_v
    by_reset = 0 if parameters.to_zero else of_v * spikes
    through = of_u - kept if parameters.adaptive else through_KBSC
    u = (x_KBSC + 1) * theta + (weight * s_KBSC if parameters.adaptive else 0)
    v_after = u * (1 - spikes) if parameters.to_zero else u - spikes * theta
    of_leak = of_u * torch.cat([before.v_BSC.unsqueeze(0), v_after[:-1]])
    if parameters.adaptive:
        of_s, of_decay = after.s_BSC, torch.empty_like(of_u)
        for k in range(len(of_u) - 1, -1, -1):
            of_decay[k] = of_s * s_KBSC[k]
            of_s = decay * of_s - weight * through[k]
        of_weight = -through * s_KBSC
    else:
        of_decay = grad_KBSC * torch.cat([before.s_BSC.unsqueeze(0), s_KBSC[:-1]])
        of_weight = torch.zeros_like(of_u)
    found = (-through * (x_KBSC + 1) - by_reset, of_leak, of_decay, of_weight)
    return torch.stack([of.sum((0, 1), dtype=torch.float64).sum_to_size(theta.shape) for of in found])


def _later(values_KBSC: Tensor, last_BSC: Tensor) -> Tensor:
    """Each step's successor; that of the last step is ``last_BSC``."""
    return torch.cat([values_KBSC[1:], last_BSC.unsqueeze(0)])
