"""Reference for the kernels over packed spikes: the plain kernel of ``reference.py`` with words in and words out.

Every back end has these functions; ``cpu.py`` and ``cuda.py`` are tested against them.
Suffix legend: K steps of the piece, T all steps, B batch, S positions, P pooled positions, C channels, W words, R = S or 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeprop.snn.engine.kernels.arguments import PackedSpikes, ScanParameters, SpikeTrain, TrainedGradients
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import BITS, channels_first, channels_last, pack, unpack
from spikeprop.snn.firing import NEVER, advance_since
from spikeprop.snn.surrogate import STDB

__all__ = [
    "any_of", "pooled", "scan", "scan_back", "scan_back_slopes", "scan_back_trained", "since_at_end", "spread", "unpack",
]  # fmt: skip


def scan(current_KBSC: Tensor, v_BSC: Tensor, parameters: ScanParameters, words_KBSW: Tensor, *, potential: bool) -> int:
    """Integrate, fire, reset; writes the words and the potential after the last step, returns the number of spikes.

    Args:
        current_KBSC: K steps, or one that is repeated. Overwritten by u/theta - 1 where ``potential``.
        v_BSC: potential before the first step, overwritten by that after the last.
        parameters: of the neurons.
        words_KBSW: where the spikes go.
        potential: keep the potentials that were compared with the threshold.
    """
    theta_RC, count = parameters.theta_RC, 0
    for k in range(len(words_KBSW)):
        current = current_KBSC[min(k, len(current_KBSC) - 1)]
        u = v_BSC * parameters.leak_RC + current
        spikes = (u > theta_RC).to(u)
        if potential:
            current.copy_(u / theta_RC - 1)
        v_BSC.copy_(u * (1 - spikes) if parameters.to_zero else u - spikes * theta_RC)
        words_KBSW[k] = pack(spikes)
        count += int(spikes.sum())
    return count


def any_of(words_KBSW: Tensor, any_BSW: Tensor) -> None:
    """Words or-ed over time, into ``any_BSW``."""
    any_BSW.zero_()
    for words in words_KBSW:
        any_BSW.bitwise_or_(words)


def since_at_end(words_TBSW: Tensor, any_MBSW: Tensor, piece: int) -> Tensor:
    """Steps since the last spike, after the last step, int32 (B, S, 32 W): the state that ``scan_back`` takes back in time.

    A neuron that has not fired has as many as there were steps.
    """
    since = torch.zeros(*words_TBSW.shape[1:3], words_TBSW.shape[3] * BITS, dtype=torch.int32)
    for fired in unpack(words_TBSW, since.shape[-1], torch.int32):
        since = advance_since(since, fired)
    return since


def scan_back(
    gradient: Gradient,
    grad_v_BSC: Tensor,
    train: SpikeTrain,
    begin: int,
    parameters: ScanParameters,
    surrogate: STDB,
    out_KBSC: Tensor,
) -> None:
    """Gradient of the currents of steps begin.. from that of their spikes, with the STDB surrogate.

    Args:
        gradient: of the piece's spikes; its memory may be written over.
        grad_v_BSC: gradient of the potential after the piece, overwritten by that before it.
        train: spikes of all steps. Its ``since_BSC`` holds the steps since the last spike after this piece; the faster kernels
            overwrite it with those before it.
        begin: first step of the piece.
        parameters, surrogate: of the neurons.
        out_KBSC: where the gradient goes; the memory of ``gradient`` itself, where that is not pooled.
    """
    grad_KBSC = gradient.dense().contiguous()
    end = begin + len(grad_KBSC)
    slopes = stdb_slopes(train.words_TBSW[:end], grad_KBSC.shape[-1], grad_KBSC.dtype, surrogate)[begin:]
    scan_back_slopes(grad_KBSC, grad_v_BSC, train.words_TBSW[begin:end], slopes, parameters)
    out_KBSC.copy_(grad_KBSC)


def stdb_slopes(words_TBSW: Tensor, channels: int, dtype: torch.dtype, surrogate: STDB) -> Tensor:
    """STDB's derivative at every step, from the words of all steps so far."""
    spikes = unpack(words_TBSW, channels, dtype)
    since = torch.full_like(spikes[0], NEVER)
    slopes = torch.empty_like(spikes)
    for t, fired in enumerate(spikes):
        since = advance_since(since, fired)
        slopes[t] = surrogate(since, since)
    return slopes


def scan_back_slopes(
    grad_KBSC: Tensor,
    grad_v_BSC: Tensor,
    words_KBSW: Tensor,
    slope_KBSC: Tensor,
    parameters: ScanParameters,
) -> None:
    """The same with the surrogate's values given."""
    spikes = unpack(words_KBSW, grad_KBSC.shape[-1], grad_KBSC.dtype)
    for k in range(len(grad_KBSC) - 1, -1, -1):
        kept = grad_v_BSC * (1 - spikes[k]) if parameters.to_zero else grad_v_BSC
        grad_KBSC[k].mul_(slope_KBSC[k] / parameters.theta_RC).add_(kept)
        grad_v_BSC.copy_(grad_KBSC[k] * parameters.leak_RC)


def scan_back_trained(
    grad_KBSC: Tensor,
    grad_v_BSC: Tensor,
    words_KBSW: Tensor,
    slope_KBSC: Tensor,
    x_KBSC: Tensor,
    before_BSC: Tensor,
    parameters: ScanParameters,
    wanted: tuple[bool, bool],
) -> TrainedGradients:
    """The same where thresholds or leaks are trained; returns their gradients (see ``reference.py``).

    Args:
        x_KBSC: u/theta - 1 at every step.
        before_BSC: potential before the piece.
        wanted: of the threshold, of the leak.
    """
    theta_RC, leak_RC, to_zero = parameters.theta_RC, parameters.leak_RC, parameters.to_zero
    spikes = unpack(words_KBSW, grad_KBSC.shape[-1], grad_KBSC.dtype)
    of_theta, of_leak = torch.zeros_like(grad_v_BSC), torch.zeros_like(grad_v_BSC)
    for k in range(len(grad_KBSC) - 1, -1, -1):
        through_spikes = grad_KBSC[k] * (slope_KBSC[k] / theta_RC)
        of_theta -= through_spikes * (x_KBSC[k] + 1)
        if to_zero:
            grad_v_BSC.mul_(1 - spikes[k])
        else:
            of_theta -= grad_v_BSC * spikes[k]
        grad_KBSC[k] = through_spikes + grad_v_BSC
        u = (x_KBSC[k - 1] + 1) * theta_RC
        after = u * (1 - spikes[k - 1]) if to_zero else u - theta_RC * spikes[k - 1]
        of_leak += grad_KBSC[k] * (before_BSC if k == 0 else after)
        grad_v_BSC.copy_(grad_KBSC[k] * leak_RC)
    sums = [(of if want else of.zero_()).sum(0, dtype=torch.float64) for of, want in zip((of_theta, of_leak), wanted)]
    return TrainedGradients(*(of_SC.sum_to_size(theta_RC.shape) for of_SC in sums))


def pooled(spikes: PackedSpikes, dtype: torch.dtype) -> Tensor:
    """The values (K, B, P, C) that a synapse's weights see: masked, average-pooled spikes."""
    values_KBSC = unpack(spikes.words_KBSW, spikes.channels, dtype)
    if spikes.scale_BSC is not None:
        values_KBSC = values_KBSC * spikes.scale_BSC.to(dtype)
    if spikes.pool == 1:
        return values_KBSC
    images = channels_first(values_KBSC, (spikes.channels, *spikes.size))
    return channels_last(F.avg_pool2d(images, spikes.pool), len(values_KBSC))


def spread(gradient: Gradient) -> Tensor:
    """Gradient of the spikes from that of the values: the transpose of ``pooled``."""
    return gradient.dense()
