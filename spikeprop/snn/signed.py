"""Signed and graded integrate-and-fire: neurons that take back what later input has proved wrong, and send whole numbers.

    u = v + I;   k = the largest of 0..2^n - 1 with k q < u;   or, below 0, minus the least that lifts u to 0, no more than was
    sent and 2^n - 1 at most;   v = u - k q          with q = theta / 2^(n-1), start at q/2

That is greedy: of the levels theta, theta/2, .., theta/2^(n-1) = q each is sent, from the largest on, if the rest is above it. A
converted ReLU fires too often where positive input comes before negative, and an ordinary neuron cannot undo that: the error of
uneven arrival, which few time steps leave no time to even out. With negative spikes the sum sent after T steps is that of the
summed input, max(0, ceil(sum I / q + 1/2) - 1), as long as no step is due more than 2^n - 1: within q/2 of it. Remembering the
sum keeps it from falling below 0, as a ReLU's output does; with ``rectify=False`` there is no such bound, and the neuron stands
for the identity: the sum sent is that of the input, rounded. (One level: Wang et al. 2022, "Signed Neuron with Memory: Towards
Simple, Accurate and High-Efficient ANN-SNN Conversion"; here a neuron takes back at once below 0, which rounds exactly, theirs a
threshold lower. Several: the levels of H-MT, AAAI 2026.)

The gradient passes straight through the rounding (Bengio et al. 2013, arXiv:1308.3432). Where a step sends all that is due, a
change of u is sent on at once, and what is left does not depend on it; elsewhere (a sum below 0, or more due than 2^n - 1)
nothing is sent of it, and the potential keeps it for later steps. So with g the gradients and v after step t in [0, q] or not,

    g_u[t] = g_o[t] / q  if 0 <= v[t] <= q, else g_v[t];    g_v[t-1] = g_I[t] = g_u[t]

Where no sum reaches 0 and payloads suffice, that is the derivative of the rounded sum. How much may be taken back counts as a
constant: a step that takes back all that was sent, and stays below 0, passes nothing to the steps that sent it, though the sum
no longer depends on these. So with one level and few steps more gradient passes than the ReLU of the summed input has.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprop.snn.dynamics import LayerDynamics, NeuronState
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.surrogate import Surrogate

MOST_LEVELS = 7  # payloads travel as int8


class GradedIF(Neuron):
    """Integrate-and-fire without leak, whose spikes carry an integer of ``levels`` bits and a sign.

    For conversion in few steps, and fine-tuning, whose gradients pass straight through the rounding. Every spike stands for its
    payload times ``spike_size``. Hardware needs graded spikes, as Loihi 2 has them: a synapse multiplies by the payload, which
    SynOps and energy count as one addition a bit.

    Args:
        levels: n; payloads reach from -(2^n - 1) to 2^n - 1, n at most 7.
        v_threshold: the largest level, positive; a number here, one a neuron or a channel after calibration. A neuron fires above
            the smallest, ``spike_size``, which is what tables and pictures call its threshold.
        v_init: potential before the first step, as a fraction of the smallest level; 0.5 rounds.
        surrogate: None; others are refused, since none is used.
        rectify: never take back more than was sent; without, the sum that is sent may fall below 0.
    """

    signed: ClassVar[bool] = True

    def __init__(
        self,
        *,
        levels: int = 3,
        v_threshold: float = 1.0,
        v_init: float = 0.5,
        surrogate: Surrogate | None = None,
        rectify: bool = True,
    ):
        if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
            raise ValueError(f"levels is {levels!r}; a graded spike has 1 to {MOST_LEVELS} levels, since payloads are bytes")
        if surrogate is not None:
            raise ValueError(
                f"{type(self).__name__} was given the surrogate {type(surrogate).__name__}, and uses none: a payload "
                "is a rounded sum, and the gradient passes straight through the rounding; leave surrogate out"
            )
        super().__init__(v_threshold, 1.0, "subtract", v_init, None)
        self.surrogate = None  # type: ignore[assignment]
        self.levels, self.rectify = levels, rectify

    @property
    def payload_bits(self) -> int:
        return self.levels

    @property
    def spike_size(self) -> Tensor:
        return self.v_threshold.detach() / 2 ** (self.levels - 1)

    def set_full_scale(self, value: Tensor) -> None:
        self.set_threshold(value * (2 ** (self.levels - 1) / self.payload))

    def initial_state(self, current: Tensor) -> NeuronState:
        return NeuronState(torch.zeros_like(current) + self.v_init * self.spike_size, None, torch.full_like(current, self.credit))

    @property
    def credit(self) -> float:
        """What may be taken back before anything was sent."""
        return 0.0 if self.rectify else math.inf

    def activation(self, total: Tensor, ceiling: Tensor | None) -> Tensor:
        """A ReLU, clipped at the ceiling, or the identity."""
        return super().activation(total, ceiling) if self.rectify else total

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        assert state.sent is not None
        wide = currents.float() if currents.element_size() < 4 else currents  # a potential adds up what bfloat16 would round away
        given = (state.v.to(wide), state.sent.to(wide), self.spike_size.to(wide))
        spikes, v, sent = _StraightThrough.apply(wide, *given, self.payload)  # type: ignore[misc]
        return spikes.to(currents.dtype), NeuronState(v, None, sent)

    def extra_repr(self) -> str:
        theta = self.v_threshold.detach()
        levels = f"levels={self.levels}, " if type(self) is GradedIF else ""
        levels += "" if self.rectify else "rectify=False, "
        return levels + (f"v_threshold={float(theta):.4g}" if theta.numel() == 1 else f"v_threshold={tuple(theta.shape)}")


class SignedIF(GradedIF):
    """Integrate-and-fire without leak, whose spikes are 1 and -1: ``GradedIF(levels=1)``.

    For conversion to spikes of one bit and a sign, in 8 to 32 steps; in fewer after fine-tuning. A spike either way is an
    event of the same cost, and hardware needs events that carry a sign.

    Args:
        v_threshold: positive; a number here, one a neuron or a channel after calibration.
        v_init: potential before the first step, as a fraction of the threshold; 0.5 rounds.
        surrogate, rectify: as of ``GradedIF``.
    """

    def __init__(
        self, *, v_threshold: float = 1.0, v_init: float = 0.5, surrogate: Surrogate | None = None, rectify: bool = True
    ):
        super().__init__(levels=1, v_threshold=v_threshold, v_init=v_init, surrogate=surrogate, rectify=rectify)


class _StraightThrough(torch.autograd.Function):
    """``scan`` of K steps, with the gradient of the module's paragraph."""

    @staticmethod
    def forward(ctx: Any, currents: Tensor, v: Tensor, sent: Tensor, unit: Tensor, payload: int) -> tuple[Tensor, Tensor, Tensor]:
        after_v, after_sent = (t.clone(memory_format=torch.contiguous_format) for t in (v, sent))
        spikes = torch.empty_like(currents, memory_format=torch.contiguous_format)
        scan(currents, unit, payload, after_v, after_sent, spikes)
        ctx.mark_non_differentiable(after_sent)
        ctx.save_for_backward(currents, v, spikes, unit)
        return spikes, after_v, after_sent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        currents, v, spikes, unit = ctx.saved_tensors
        found, first = (grad.clone(memory_format=torch.contiguous_format) for grad in grads[:2])
        (_scan_back_on_cpu if _on_cpu(currents) else _scan_back)(found, currents, spikes, unit, v, first)
        return found, first, None, None, None


def takes_back(neuron: LayerDynamics) -> TypeGuard[GradedIF]:
    """Whether ``scan`` runs a neuron: ours, not a subclass with rules of its own."""
    return type(neuron) in (GradedIF, SignedIF)


def scan(currents: Tensor, unit: Tensor, payload: int, v: Tensor, sent: Tensor, spikes: Tensor) -> int:
    """Advance over the steps of ``spikes`` (K, B, ...); ``v`` and ``sent`` (B, ...) go on from what they are.

    Returns the number of spikes, whatever they carry.

    Args:
        currents: (K, B, ...), or (1, B, ...) for a current that stays the same.
        unit: potential of a payload of 1, broadcastable to a sample.
        payload: the largest.
        spikes: contiguous, overwritten; of the currents' type or int8.
    """
    return (_scan_on_cpu if _on_cpu(currents) else _scan)(currents, unit, payload, v, sent, spikes)


def _on_cpu(currents: Tensor) -> bool:
    """Whether the loops over memory run them."""
    return currents.device.type == "cpu" and currents.dtype in (torch.float32, torch.float64)


def _scan(currents: Tensor, unit: Tensor, payload: int, v: Tensor, sent: Tensor, spikes: Tensor) -> int:
    """The definition, step by step: each level is tried on top of those taken already."""
    for current, out in zip(currents.expand(len(spikes), *v.shape), spikes):
        v += current
        up, down = torch.zeros_like(v), torch.zeros_like(v)
        for level in range(payload.bit_length() - 1, -1, -1):
            more, less = up + 2**level, down + 2**level
            up = torch.where(v > more * unit, more, up)
            down = torch.where((v < (1 - less) * unit) & (less <= sent), less, down)
        out.copy_(up - down)
        sent += up - down
        v -= (up - down) * unit
    return int(spikes.count_nonzero())


def _scan_on_cpu(currents: Tensor, unit: Tensor, payload: int, v: Tensor, sent: Tensor, spikes: Tensor) -> int:
    """The same in one pass over memory."""
    from spikeprop.snn.engine.kernels import neuron_loops  # here, since it brings Numba
    from spikeprop.snn.engine.kernels.cpu import in_ranges

    current_KBN, v_BN, sent_BN, spikes_KBN = (_flat(t, v) for t in (currents.contiguous(), v, sent, spikes))
    unit_N, most = _by_neuron(unit, v), v_BN.dtype.type(payload)

    def work(first: int, last: int) -> int:
        if payload == 1:
            return neuron_loops.scan(current_KBN, unit_N, v_BN, sent_BN, spikes_KBN, first, last)
        return neuron_loops.scan_graded(current_KBN, unit_N, most, v_BN, sent_BN, spikes_KBN, first, last)

    return sum(in_ranges(len(v), work))


def _scan_back(grad: Tensor, currents: Tensor, spikes: Tensor, unit: Tensor, v: Tensor, grad_v: Tensor) -> None:
    """The gradient, step by step: ``grad`` (K, B, ...) of the spikes becomes that of the currents, ``grad_v`` that of ``v``."""
    after_K = v + torch.cumsum(currents - spikes * unit, 0)
    for k in range(len(grad) - 1, -1, -1):
        whole = (after_K[k] >= 0) & (after_K[k] <= unit)
        grad[k] = torch.where(whole, grad[k] / unit, grad_v)
        grad_v.copy_(grad[k])


def _scan_back_on_cpu(grad: Tensor, currents: Tensor, spikes: Tensor, unit: Tensor, v: Tensor, grad_v: Tensor) -> None:
    """The same in one pass over memory."""
    from spikeprop.snn.engine.kernels import neuron_loops  # here, since it brings Numba
    from spikeprop.snn.engine.kernels.cpu import in_ranges

    grad_KBN, current_KBN, spikes_KBN = (_flat(t, v) for t in (grad, currents.contiguous(), spikes))
    v_BN, grad_v_BN, unit_N = _flat(v.contiguous(), v), _flat(grad_v, v), _by_neuron(unit, v)
    in_ranges(len(v), lambda a, b: neuron_loops.scan_back(grad_KBN, current_KBN, spikes_KBN, unit_N, v_BN, grad_v_BN, a, b))


def _flat(tensor: Tensor, v: Tensor) -> Any:
    """Its memory as an array, whose last axis is the neurons of a sample of ``v``."""
    neurons = math.prod(v.shape[1:])  # and not -1, which a batch of 0 leaves open
    return tensor.detach().reshape(*tensor.shape[: tensor.dim() - v.dim() + 1], neurons).numpy()


def _by_neuron(unit: Tensor, v: Tensor) -> Any:
    return unit.detach().to(v).expand(v.shape[1:]).reshape(-1).numpy()
