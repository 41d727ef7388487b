"""``IF`` and ``LIF`` layers on floats, where a network trains on the plain reference: fast kernels between torch's operations.

Batch-norm needs the currents of all samples and steps at once, so such a network runs layer by layer in torch, over all of time.
Its neurons run here, by ``kernels/float_loops.py``, with the gradients of ``kernels/reference.py``.

So do few steps of a network of images under autocast to bfloat16, without batch-norm too: T*B images go through one convolution,
in channels-last order, and potentials stay in float32. At few steps that takes less time than packed spikes save: 6 against 11 ms
an image at T = 1, 23 against 37 at T = 4 (FastCNN of widths 64, 256, 320, one core with AVX-512 BF16).

Suffix legend: T steps, K steps or 1, B batch, S neurons of a sample.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeprop.runtime.devices import cpu_multiplies_bfloat16
from spikeprop.snn.dynamics import LayerDynamics, NeuronState
from spikeprop.snn.engine import sizes
from spikeprop.snn.engine.buffer_pool import new_tensor
from spikeprop.snn.engine.kernels import float_loops
from spikeprop.snn.engine.kernels.cpu import NumpyView, in_ranges
from spikeprop.snn.hooks import global_hooks, untouched
from spikeprop.snn.layer import LayeredNetwork
from spikeprop.snn.neuron import Neuron, is_integrate_and_fire
from spikeprop.snn.surrogate import STDB, Triangle
from spikeprop.snn.timed_input import TimedInput

THETA, LEAK = 3, 4  # places among the function's inputs


def takes(network: LayeredNetwork, given: TimedInput) -> bool:
    """Whether a simulation with gradients runs here in autocast's bfloat16, and not packed in float32; the engine knows it."""
    if given.x_TB.dtype != torch.float32 or given.timesteps > sizes.BFLOAT16_STEPS or not _in_bfloat16(given.x_TB.device):
        return False
    layers = [layer for _, layer in network.named_layers()]
    known = all(layer.reads_out or is_integrate_and_fire(layer.dynamics) for layer in layers)
    if len(network.input_shape) != 3 or not known or any(layer.feedback_sources for layer in layers):
        return False
    neurons = sum(torch.Size(shape).numel() for shape in network.known_shapes.values())
    return neurons * given.timesteps * len(given.like_B) * sizes.KEPT_BYTES <= sizes.BFLOAT16_BYTES


def _in_bfloat16(device: torch.device) -> bool:
    """Whether products are to be in bfloat16, on a processor that has such."""
    asked = device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return asked and cpu_multiplies_bfloat16()


def knows(neuron: LayerDynamics, current_TB: Tensor) -> TypeGuard[Neuron]:
    """Whether the kernels run a layer on this current."""
    if not is_integrate_and_fire(neuron) or current_TB.device.type != "cpu" or type(current_TB) is not Tensor:
        return False
    plain = current_TB.dtype in (torch.float32, torch.float64) and neuron.v_threshold.dtype == current_TB.dtype
    return plain and untouched(neuron) and not global_hooks()


def channels_last(x_TB: Tensor) -> Tensor:
    """Images (T, B, C, H, W) as they are, in the order in which convolutions give their currents in the order of ``advance``."""
    return x_TB.movedim(2, -1).contiguous().movedim(-1, 2)


def advance(neuron: Neuron, current_TB: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
    """What ``neuron.run`` returns; of images in channels-last order, in which torch's pooling and batch-norm are fastest."""
    steps, shape = len(current_TB), current_TB.shape[2:]
    last = len(shape) == 3 and shape[0] > 1
    back = (-1, -3, -2) if last else tuple(range(-len(shape), 0))  # C, H, W of what has them as H, W, C

    def in_order(value: Tensor) -> Tensor:
        return value.movedim(-3, -1) if last else value

    def of_samples(value: Tensor) -> Tensor:
        inner = (shape[1], shape[2], shape[0]) if last else tuple(shape)
        value = value.unflatten(-1, inner)
        return value.permute(*range(value.dim() - len(back)), *(axis + value.dim() for axis in back))

    current_KB = in_order(current_TB[:1] if current_TB.stride(0) == 0 else current_TB)
    rows = [in_order(value.expand(shape)).reshape(-1).contiguous() for value in (neuron.v_threshold, neuron.leak)]
    since = neuron.tracked(state.since, state.v)
    given = (in_order(state.v).flatten(1), None if since is None else in_order(since).flatten(1))
    spikes_TBS, v_BS, since_BS = _FireFloats.apply(current_KB.flatten(2), *given, *rows, steps, neuron)
    return of_samples(spikes_TBS), NeuronState(of_samples(v_BS), None if since_BS is None else of_samples(since_BS))


class _FireFloats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        current_KBS: Tensor,
        v_BS: Tensor,
        since: Tensor | None,
        theta_S: Tensor,
        leak_S: Tensor,
        steps: int,
        neuron: Neuron,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        surrogate, batch, neurons = neuron.surrogate, *v_BS.shape
        trains_leak = ctx.needs_input_grad[LEAK]
        keeps = surrogate.needs_potential or ctx.needs_input_grad[THETA] or trains_leak
        before_v_BS = v_BS if trains_leak else v_BS[:0]
        current_KBS, v_BS = current_KBS.contiguous(), v_BS.clone(memory_format=torch.contiguous_format)
        before_BS = None if since is None else since.reshape(batch, neurons)
        since_BS = None if before_BS is None else before_BS.clone(memory_format=torch.contiguous_format)
        held = [steps, steps if keeps else 0]
        spikes_TBS, x_TBS = (new_tensor((n, batch, neurons), current_KBS.dtype, current_KBS.device) for n in held)
        arrays = [_array(t) for t in (current_KBS, theta_S, leak_S)]
        tracked = _array(since_BS if since_BS is not None else v_BS)
        rest = (_array(v_BS), tracked, since_BS is not None, _array(spikes_TBS), _array(x_TBS), keeps)
        to_zero = neuron.reset == "zero"
        in_ranges(batch, lambda first, last: float_loops.fire(*arrays, to_zero, *rest, first, last))
        ctx.save_for_backward(spikes_TBS, x_TBS, before_BS, theta_S, leak_S, before_v_BS)
        ctx.surrogate, ctx.to_zero, ctx.held = surrogate, to_zero, len(current_KBS)
        if since_BS is not None:
            ctx.mark_non_differentiable(since_BS)
        return spikes_TBS, v_BS, since_BS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        spikes_TBS, x_TBS, before_BS, theta_S, leak_S, v_BS = ctx.saved_tensors
        trained = [ctx.needs_input_grad[place] for place in (THETA, LEAK)]
        grad_TBS, grad_v_BS = grads[0].contiguous(), grads[1].clone(memory_format=torch.contiguous_format)
        kind, height, decay, slope_TBS, value_BS = _slopes(ctx.surrogate, spikes_TBS, x_TBS, before_BS)
        out_KBS = new_tensor((ctx.held, *grad_TBS.shape[1:]), grad_TBS.dtype, grad_TBS.device)
        real = _array(grad_v_BS).dtype.type
        arrays = (_array(grad_TBS), _array(spikes_TBS), _array(slope_TBS), kind, real(height), real(decay), _array(value_BS))
        found = [torch.zeros_like(grad_v_BS if wanted else grad_v_BS[:0]) for wanted in trained]  # rows of sums
        read = [_array(t) for t in (theta_S, leak_S)], [_array(t) for t in (x_TBS, v_BS.contiguous(), grad_v_BS, out_KBS, *found)]
        rest = (*read[0], ctx.to_zero, *read[1], *trained)
        in_ranges(len(grad_v_BS), lambda first, last: float_loops.back(*arrays, *rest, first, last))
        return out_KBS, grad_v_BS, None, *(of.sum(0) if wanted else None for of, wanted in zip(found, trained)), None, None


def _slopes(surrogate: Any, spikes_TBS: Tensor, x_TBS: Tensor, before_BS: Tensor | None) -> tuple[Any, ...]:
    """What the reverse scan reads of the surrogate."""
    nothing = spikes_TBS[0, :0]
    if type(surrogate) is STDB:
        assert before_BS is not None
        value_BS = torch.exp(before_BS * -surrogate.beta).mul_(surrogate.alpha).masked_fill_(before_BS == math.inf, 0)
        return float_loops.STDB, surrogate.alpha, math.exp(-surrogate.beta), x_TBS, value_BS.contiguous()
    if type(surrogate) is Triangle:
        return float_loops.TRIANGLE, surrogate.height, 0.0, x_TBS, nothing
    slopes, since = [], before_BS
    for t in range(len(spikes_TBS)):
        if since is not None:
            since = torch.where(spikes_TBS[t] != 0, 0, since + 1)
        x = x_TBS[t] if surrogate.needs_potential else since
        slopes.append(surrogate(x, x if since is None else since))
    return float_loops.GIVEN, 0.0, 0.0, torch.stack(slopes), nothing


def _array(tensor: Tensor) -> Any:
    import numpy as np

    return np.asarray(NumpyView(tensor.detach()))
