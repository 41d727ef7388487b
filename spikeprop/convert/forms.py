"""``BatchAxes``: of each node of a traced network, where its tensor has the batch, or, if it depends on no image, its value.

Sizes are computed for two numbers of images (``trace.outlines``): the axis whose size differs holds the images. Nodes that depend
on no image, such as positional embeddings, masks, standardised weights and what is made of sizes, are computed once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from spikeprop.convert.known import BATCH, OTHER_BATCH, holds_tensors
from spikeprop.convert.trace import function_name, refuse
from spikeprop.snn.call import BatchAxis

RANDOM = frozenset((
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "multinomial", "normal",
    "uniform", "exponential", "poisson", "rrelu", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_alpha_dropout",
))  # fmt: skip
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")


class BatchAxes:
    """What is known of the nodes before anything is converted.

    Args:
        traced: the graph.
        outlines: the result of each node for ``BATCH`` and for ``OTHER_BATCH`` images: tensors on the meta device, or constants.
        device: for constants.
    """

    def __init__(self, traced: fx.GraphModule, outlines: tuple[dict[fx.Node, Any], dict[fx.Node, Any]], device: torch.device):
        self._traced, self._outlines, self._device = traced, outlines, device
        self._modules = dict(traced.named_modules())
        self._found: dict[tuple[fx.Node, int], BatchAxis] = {}
        self._values: dict[fx.Node, Any] = {}
        self._depends: dict[fx.Node, bool] = {}
        for node in traced.graph.nodes:
            tensors = holds_tensors(outlines[0][node]) and not (function_name(node) in LIKE and node.op.startswith("call_"))
            of_images = node.op == "placeholder" or any(self._depends[n] for n in node.all_input_nodes)
            self._depends[node] = tensors and node.op != "get_attr" and of_images

    def depends(self, node: Any) -> bool:
        """Whether an argument is a tensor, or a sequence of tensors, that is computed from the images."""
        return isinstance(node, fx.Node) and self._depends[node]

    def learnt(self, node: Any) -> bool:
        """Whether an argument that depends on no image is computed from tensors of the network: training changes its value."""
        return isinstance(node, fx.Node) and (
            node.op in ("get_attr", "call_module") or any(self.learnt(n) for n in node.all_input_nodes if not self.depends(n))
        )

    def shape(self, node: fx.Node, index: int = 0) -> tuple[int, ...]:
        """Of the tensor of a node, or one of several, for ``BATCH`` images."""
        return tuple(_part(self._outlines[0][node], index).shape)

    def of(self, node: fx.Node, index: int = 0) -> BatchAxis:
        """The form of a node's tensor, or of one of its tensors.

        Raises:
            ConversionError: the images are on no axis of it, or on several.
        """
        if (node, index) not in self._found:
            self._found[node, index] = self._form(node, index)
        return self._found[node, index]

    def set(self, node: fx.Node, index: int, form: BatchAxis) -> None:
        """What an operation has shown."""
        self._found[node, index] = form

    def candidates(self, node: fx.Node, index: int = 0) -> Iterator[BatchAxis]:
        """Possible forms: the images lie among others on their axis in one order or another."""
        axis, others = self._axis(node, index)
        for inner in range(others, 0, -1):
            if others % inner == 0:
                yield BatchAxis(axis, others // inner, inner)

    def plain(self, node: fx.Node) -> bool:
        """Whether the node's tensors and those that it reads have the batch first, and alone there."""
        return all(self._is_plain(n) for n in (node, *node.all_input_nodes) if self.depends(n))

    def _is_plain(self, node: fx.Node) -> bool:
        count = len(self._outlines[0][node]) if isinstance(self._outlines[0][node], tuple | list) else 1
        tensors = [i for i in range(count) if isinstance(_part(self._outlines[0][node], i), Tensor)]
        return all(self._axis(node, i) == (0, 1) for i in tensors)

    def _form(self, node: fx.Node, index: int) -> BatchAxis:
        found = list(self.candidates(node, index))
        inherited = [self.of(n) for n in node.all_input_nodes if self.depends(n) and len(found) > 1 and self._single(n)]
        return next(
            (BatchAxis(found[0].axis, f.outer, f.inner) for f in inherited if f._replace(axis=found[0].axis) in found), found[0]
        )

    def _single(self, node: fx.Node) -> bool:
        return isinstance(self._outlines[0][node], Tensor)

    def _axis(self, node: fx.Node, index: int) -> tuple[int, int]:
        """The axis of the images, and how many other entries it has for each."""
        one, other = (tuple(_part(outline[node], index).shape) for outline in self._outlines)
        axes = [i for i, (a, b) in enumerate(zip(one, other)) if a != b]
        if len(one) != len(other) or len(axes) != 1 or one[axes[0]] * OTHER_BATCH != other[axes[0]] * BATCH:
            raise refuse(node, f"images on no axis, or on several, of a tensor {one}", "images must not influence one another")
        return axes[0], one[axes[0]] // BATCH

    # constants ------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def constant(self, argument: Any) -> Any:
        """An argument that depends on no image: numbers, and tensors that are computed here."""
        if isinstance(argument, fx.Node):
            if argument not in self._values:
                self._values[argument] = self._computed(argument)
            return self._values[argument]
        if isinstance(argument, torch.device):
            return self._device if argument.type == "meta" else argument
        return mapped(self.constant, argument)

    def _computed(self, node: fx.Node) -> Any:
        if not holds_tensors(self._outlines[0][node]):
            return self.constant(self._outlines[0][node])
        refuse_random(node)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._traced)
        if node.op == "call_module":
            return self._modules[str(node.target)](*self.constant(node.args), **self.constant(dict(node.kwargs)))
        args = node.args
        if function_name(node) in LIKE and self.depends(args[0]):
            like = self._outlines[0][args[0]]  # type: ignore[index]
            first: Any = torch.empty(like.shape, dtype=like.dtype, device=self._device)
            args = (first, *args[1:])
        args, kwargs = self.constant(args), self.constant(dict(node.kwargs))
        target: Any = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
        return target(*(args[1:] if node.op == "call_method" else args), **kwargs)

    def of_sample(self, constant: Tensor, node: fx.Node, shape: tuple[int, ...], form: BatchAxis) -> Tensor:
        """A constant that meets a tensor of ``shape`` and ``form``, as it meets one sample; broadcastable where it was.

        Raises:
            ConversionError: it differs from image to image.
        """
        if form.plain and (constant.dim() < len(shape) or constant.shape[0] == 1):
            return constant[0] if constant.dim() == len(shape) else constant
        samples = form.samples(torch.broadcast_to(constant, shape))
        if not torch.equal(samples, samples[:1].expand_as(samples)):
            raise refuse(node, "a constant that differs from image to image", "images must not influence one another")
        return samples[0]


def refuse_random(node: fx.Node) -> None:
    """Raises ConversionError for a function that draws random numbers."""
    if node.op.startswith("call_") and node.op != "call_module" and function_name(node) in RANDOM:
        raise refuse(node, "random numbers", "leave them out in evaluation mode")


def mapped(change: Callable[[Any], Any], argument: Any) -> Any:
    """The argument with ``change`` made to what it contains."""
    if isinstance(argument, torch.Size):
        return argument
    if isinstance(argument, tuple | list):
        parts = [change(part) for part in argument]
        return tuple(parts) if isinstance(argument, tuple) else parts
    if isinstance(argument, dict):
        return {key: change(part) for key, part in argument.items()}
    if isinstance(argument, slice):
        return slice(change(argument.start), change(argument.stop), change(argument.step))
    return argument


def _part(outlined: Any, index: int) -> Any:
    return outlined[index] if isinstance(outlined, tuple | list) else outlined
