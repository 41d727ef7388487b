"""A few samples of a batch, run through all layers of a network, chunk of steps by chunk of steps.

Suffix legend: K steps of a chunk, B batch, O classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.engine.dynamics_run import LayerParts, as_sent, make_layer_run
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import channels_first, channels_last
from spikeprop.snn.engine.layer_run import LayerRun, SliceContext
from spikeprop.snn.engine.layout import GradientAccumulator, Layout
from spikeprop.snn.engine.source_values import SourceSpec, SourceValues
from spikeprop.snn.engine.weighted_run import make_synapse_run
from spikeprop.snn.layer import INPUT, LayeredNetwork
from spikeprop.snn.synapse import DropoutMasks


class SliceRun:
    """One simulation of the samples first..last of the batch.

    Args:
        network: what is simulated.
        layouts: of its synapses, by key.
        dynamics: by layer, None for the output: the network's, or copies.
        masks: dropout masks of these samples, or None.
        first, last: which samples of the batch they are.
        context: what its layers share.
    """

    def __init__(
        self,
        network: LayeredNetwork,
        layouts: Mapping[str, Layout],
        dynamics: Mapping[str, LayerDynamics | None],
        masks: DropoutMasks | None,
        first: int,
        last: int,
        context: SliceContext,
    ):
        self.input_shape, self.samples, self.context = network.input_shape, slice(first, last), context
        self.layers: dict[str, LayerRun] = {}
        shapes, currents, like_B = network.known_shapes, network.known_current_shapes, context.like_B
        for name, layer in network.named_layers():
            synapses = []
            for i, source, _ in (*layer.branches(), *layer.feedback_branches()):
                key, spec = f"{name}/{i}", SourceSpec(len(like_B), shapes[source], like_B.dtype, context.buffers)
                synapses.append((source, make_synapse_run(layouts[key], key, masks, spec)))
            feedback = synapses.pop()[1] if any(layer.feedback_branches()) else None  # at most one, see ``support``
            originals = list(layer.dynamics.parameters())
            parts = LayerParts(name, dynamics[name], originals, shapes[name], currents[name], synapses, feedback)
            self.layers[name] = make_layer_run(parts, context)

    def advance(self, begin: int, steps: int, x_KB: Tensor) -> Tensor:
        """Advance ``steps`` steps on an encoded input (K or 1, B, ...); the output layer's current (K or 1, B, O, ...)."""
        values = {INPUT: self._input(x_KB)}
        for name, layer in self.layers.items():
            if layer.accumulates:
                current_KBSO = layer.current(values)
                return channels_first(current_KBSO, layer.shape).unflatten(0, current_KBSO.shape[:2])
            values[name] = layer.advance(begin, steps, values)
        raise AssertionError("the last layer has no neuron; checked at construction")

    def _input(self, x_KB: Tensor) -> SourceValues:
        """The encoded input; that of a vector as words where it is 0 and 1, since few of an event sensor's values are 1."""
        if not self.context.constant_input and len(self.input_shape) == 1 and x_KB.device.type == "cpu":
            packed = as_sent(channels_last(x_KB.flatten(0, 1), len(x_KB)), self.input_shape)
            if packed.words_KBSW is not None:
                return packed
        return SourceValues(self.input_shape, dense_KB=x_KB)

    def backward(self, number: int, x_KB: Tensor, grad_TBO: Tensor, accumulators: Mapping[str, GradientAccumulator]) -> None:
        """Take the gradients of the output layer's currents, of all steps, back through chunk ``number``, whose input is x_KB.

        The weights' gradients go to ``accumulators``, by synapse.
        """
        begin = number * self.context.chunk
        steps = min(self.context.chunk, self.context.timesteps - begin)
        values = {INPUT: self._input(x_KB)}
        for name, layer in self.layers.items():
            if not layer.accumulates:
                values[name] = layer.sent(begin, steps)
                values[name].active = layer.active(begin + steps)
        grads: dict[str, Gradient] = {}
        for name, layer in reversed(self.layers.items()):
            if layer.accumulates:
                grad_KBO = grad_TBO[begin : begin + (steps if grad_TBO.stride(0) else 1)]  # of the plain sum all are the same
                grad_KBSO = channels_last(grad_KBO.flatten(0, 1), len(grad_KBO))
                grad_KBSO = grad_KBSO.expand(steps, *grad_KBSO.shape[1:])
                gradient = Gradient(grad_KBSO.clone(memory_format=torch.contiguous_format))  # it is written over
            elif name in grads:
                gradient = grads.pop(name)
            else:  # nothing reads this layer
                continue
            for source, found in layer.backward(gradient, begin, values, accumulators).items():
                grads[source] = self.context.added(grads[source], found) if source in grads else found

    def backward_constant(self, x_KB: Tensor, accumulators: Mapping[str, GradientAccumulator]) -> None:
        """After the last chunk, the same for an input that stays the same; x_KB: one step of it."""
        values = SourceValues(self.input_shape, dense_KB=x_KB)
        for layer in self.layers.values():
            layer.backward_constant(values, accumulators)

    def start_again(self) -> None:
        """Go on from where the run that counts starts, after one beforehand."""
        for layer in self.layers.values():
            layer.start_again()

    def keep_rows(self, rows: Tensor, first: int) -> None:
        """Without a backward pass: go on with these of its samples, which are the batch's from ``first`` on."""
        context = replace(self.context, like_B=self.context.like_B[rows])
        self.samples, self.context = slice(first, first + len(rows)), context
        for layer in self.layers.values():
            layer.keep_rows(rows, context)

    def drop(self) -> None:
        """Release everything that was kept for the backward pass."""
        self.layers.clear()
