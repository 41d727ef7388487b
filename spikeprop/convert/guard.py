"""The guard of a conversion: what was converted computes what the caller's own module computes.

On a few images and in evaluation mode, to rounding,

    the module = the traced graph = the spiking network's layers, run as an ANN.

The first equation finds what a trace does not show: hooks that change something, patched forwards, weights that are computed.
Module and graph perform the same operations, so there they agree almost to the bit. The second finds faults in the tables of
operations; where folding (batch-norm, factors) leaves more rounding than expected, the conversion is repeated in float64, in
which rounding vanishes and a fault does not. An activation with steps (QCFS) is a plain clipped ReLU in the second equation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from spikeprop.convert.activations import activations, ann_output
from spikeprop.convert.builder import NEGATIVE, Builder
from spikeprop.convert.module_run import cloned, paths, recorded, seeded, undisturbed
from spikeprop.convert.plain import HOOKS
from spikeprop.errors import ConversionError
from spikeprop.snn import Neuron, SpikingNetwork
from spikeprop.snn.arithmetic import Running
from spikeprop.snn.output_form import OutputForm, leaves

IMAGES = 8
ENDS = (slice(None, 1), slice(-1, None))  # the first and the last image
LITTLE = 1e-4  # of the largest output: what reads the size of the batch changes more
NUMBERS = 8 * 3 * 64 * 64  # of larger images fewer, at least two
CAUSES = (
    "forward hooks, a forward or __call__ that was replaced, weights computed outside the layers, and random numbers in "
    "evaluation mode do not become part of a spiking network: make them layers, or remove them"
)


@dataclass(frozen=True)
class Converted:
    """What is compared: the caller's module, the builder with the traced graph, and the network before calibration."""

    ann: nn.Module
    builder: Builder
    network: SpikingNetwork


class GraphRun(fx.Interpreter):
    """Runs the traced graph with the modules' own ``forward``, without hooks.

    Args:
        traced: the graph.
        clip: activations with a ceiling are clipped ReLUs, whatever they compute besides.
        keep: keep a copy of each node's result in ``results``; an operation in place may change it afterwards.
        skip: names of nodes that pass on their input.
    """

    def __init__(self, traced: fx.GraphModule, clip: bool = False, keep: bool = False, skip: Collection[str] = ()):
        super().__init__(traced)
        self.extra_traceback = False
        self.clip, self.keep, self.skip = clip, keep, skip
        self.results: dict[fx.Node, Any] = {}
        self.inputs: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        if self.keep and n.all_input_nodes:
            self.inputs[n] = cloned(self.env[n.all_input_nodes[0]])
        result = super().run_node(n) if n.name not in self.skip else self.env[n.all_input_nodes[0]]
        if self.keep:
            self.results[n] = cloned(result)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        if self.clip and hasattr(module, "ceiling"):
            return _clipped(str(target), module, args[0])
        return type(module).forward(module, *args, **kwargs)


@torch.no_grad()
def difference(converted: Converted, x: Tensor, rebuilt: Callable[[fx.GraphModule], SpikingNetwork]) -> str | None:
    """In words, the first difference on some images; None if there is none.

    Args:
        converted: module, graph and network.
        x: images (B, ...), of which a few are used.
        rebuilt: converts a graph again, in another type.
    """
    builder, ann = converted.builder, converted.ann
    x = x[: max(2, min(IMAGES, NUMBERS // max(x[0].numel(), 1)))].to(builder.device, builder.dtype)
    x = torch.cat([x, x]) if len(x) == 1 else x  # squeeze() would take the batch's axis away
    tolerance = _tolerance(builder)
    with undisturbed(ann, x):
        found = _of_module(converted, x, tolerance)
        if found is not None:
            return found
        ideal = seeded(lambda: GraphRun(builder.traced, clip=True, skip=builder.skipped).run(x.clone()))
        output = ann_output(converted.network, x)
        off = _off_of_any(converted.network.structured(output), ideal)
        found = None if off <= tolerance else _in_float64(converted, x, rebuilt, off)
        if found is None:
            apart = _apart(converted.network, x, output, 16 * tolerance)
            found = f"one image changes the result of another, by {_percent(apart)}" if apart > 16 * tolerance else None
        if found is None and builder.arithmetic:
            found = _infinite(converted.network, x)
        return found


def _in_float64(
    converted: Converted, x: Tensor, rebuilt: Callable[[fx.GraphModule], SpikingNetwork], native: float
) -> str | None:
    """The second equation in float64 on the CPU, where rounding is no longer an explanation."""
    builder, x = converted.builder, x.cpu().double()
    traced = copy.deepcopy(builder.traced).cpu().double()
    run, network = GraphRun(traced, clip=True, keep=True, skip=builder.skipped), rebuilt(traced)
    ideal = seeded(lambda: run.run(x.clone()))
    limit = 1e-8
    if math.isfinite(native) and _off_of_any(network.structured(ann_output(network, x)), ideal) <= limit:
        return None
    values = {node.name: value for node, value in run.results.items()}
    for name, layer, activation in activations(network, x):
        value = values.get(builder.nodes.get(name, ""))
        if layer.neuron is None or name.endswith(NEGATIVE) or not isinstance(value, Tensor):
            continue
        clipped = layer.neuron.activation(value, layer.ceiling) if isinstance(layer.neuron, Neuron) else value
        if clipped.shape == activation.shape and not _off(activation, clipped) <= limit:
            return f"layer {name!r} of the spiking network does not compute what the ANN computes ({_percent(native)}); {CAUSES}"
    return f"the spiking network's output, run as an ANN, is not the ANN's ({_percent(native)} of the largest); {CAUSES}"


def _tolerance(builder: Builder) -> float:
    """Relative to the largest output: errors of some hundred roundings, which add up like a random walk over the layers."""
    layers = sum(node.op in ("call_module", "call_function", "call_method") for node in builder.traced.graph.nodes)
    return min(256 * torch.finfo(builder.dtype).eps * math.sqrt(max(layers, 1)), 1 / 32)


def _off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference relative to the largest number; infinite if the shapes differ or a number is not finite."""
    if found.shape != wanted.shape:
        return math.inf
    found, wanted = found.double().cpu(), wanted.double().cpu()
    far = float((found - wanted).abs().max()) if wanted.numel() else 0.0
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    if not math.isfinite(far):
        return math.inf
    return far / largest if largest > 0 else (math.inf if far > 0 else 0.0)


def _percent(off: float) -> str:
    return f"{100 * off:.2g} %" if math.isfinite(off) else "no finite numbers, or another shape"


def _off_of_any(found: Any, wanted: Any) -> float:
    """The largest ``_off`` of the tensors of two results; infinite if one holds others, or other constants."""
    mine, theirs = dict(leaves(found)), dict(leaves(wanted))
    if mine.keys() != theirs.keys():
        return math.inf
    far = [0.0]
    for name, value in theirs.items():
        if isinstance(value, Tensor) and isinstance(mine[name], Tensor):
            far.append(_off(mine[name], value))
        elif isinstance(value, Tensor) or isinstance(mine[name], Tensor) or mine[name] != value:
            return math.inf
    return max(far)


def _apart(network: SpikingNetwork, x: Tensor, output: Tensor, allowed: float) -> float:
    """How far the first and the last image alone are from themselves in the batch; both, as a cumulative sum goes one way only.

    A little above rounding may still be rounding, since batches of another size are summed in another order, which a deep
    network with random weights enlarges. There an image among copies of itself decides, in a batch of the same size.
    """
    apart = max(_off(ann_output(network, x[end]), output[end]) for end in ENDS)
    if allowed < apart < LITTLE:
        apart = max(_off(ann_output(network, x[end].expand_as(x))[end], output[end]) for end in ENDS)
    return apart


def _infinite(network: SpikingNetwork, x: Tensor) -> str | None:
    """What a function computes must be sent; a constant that is infinite, such as a mask, is no function's result."""
    for name, layer, value in activations(network, x):
        if isinstance(layer.dynamics, Running) and not bool(torch.isfinite(value).all()):
            what = f"layer {name!r} computes numbers that are not finite, which nothing can send"
            return f"{what}; keep them finite, such as log(x.clamp(min=1e-6))"
    return None


def _clipped(path: str, module: Any, z: Tensor) -> Tensor:
    """clip(z, 0, ceiling); the module may have steps, but nothing else."""
    ceiling = torch.as_tensor(module.ceiling).to(z)
    clipped = torch.minimum(torch.relu(z), ceiling)
    for probe, wanted, allowed in (
        (z, clipped, 0.5 * ceiling),
        (-4 * ceiling + 0 * z, torch.zeros_like(z), 1e-4 * ceiling),
        (4 * ceiling + 0 * z, ceiling + 0 * z, 1e-4 * ceiling),
    ):
        found = type(module).forward(module, probe)
        if found.shape != wanted.shape or not bool(((found - wanted).abs() <= 1.001 * allowed).all()):
            raise ConversionError(
                f"{path!r} ({type(module).__name__}) has a ceiling, but does not compute clip(z, 0, ceiling), with or without "
                "steps, so a firing rate cannot stand for it; use ClippedReLU or QCFS"
            )
    return clipped


def _of_module(converted: Converted, x: Tensor, tolerance: float) -> str | None:
    """The first layer whose input or output in the module is not that of its node, or a result that is not the graph's."""
    ann, builder = converted.ann, converted.builder
    seen, wanted = recorded(ann, x)
    graph = GraphRun(builder.traced, keep=True)
    found = seeded(lambda: graph.run(x.clone()))
    if _told(wanted) != _told(found):
        return f"the ANN's result is {_told(wanted)}, and that of its graph {_told(found)}; {_suspects(ann)}"
    if not all(bool(torch.isfinite(leaf).all()) for _, leaf in leaves(wanted) if isinstance(leaf, Tensor)):
        return f"the ANN's outputs hold NaN or infinity on the calibration images, first after {_first_infinite(graph)}"
    calls: dict[str, int] = {}
    for node in (n for n in builder.traced.graph.nodes if n.op == "call_module"):
        path, number = str(node.target), calls.get(str(node.target), 0)
        calls[path] = number + 1
        if len(seen.get(path, ())) <= number:
            return f"the ANN never calls {path!r}, which its graph calls; {_suspects(ann)}"
        pairs = zip(("the input", "the output"), seen[path][number], (graph.inputs.get(node), graph.results[node]))
        for what, own, traced in pairs:
            if isinstance(own, Tensor) and isinstance(traced, Tensor) and not _off(traced, own) <= tolerance:
                layer = f"{path!r} ({type(builder.modules[path]).__name__})"
                told = f"{_percent(_off(traced, own))} of the largest, and the result by {_percent(_off_of_any(found, wanted))}"
                return f"in the ANN {what} of {layer} differs from that in its traced graph by {told}; {_suspects(ann)}"
    if _off_of_any(found, wanted) <= tolerance:
        if converted.network.output_form is not None:  # the graph knows dictionaries, the module its own class of them
            converted.network.output_form = OutputForm.of(wanted, _sample_shape)
        return None
    told = f"by {_percent(_off_of_any(found, wanted))} after the last layer"
    return f"the ANN's result differs from that of its traced graph {told}; {_suspects(ann)}"


def _sample_shape(leaf: Any) -> tuple[int, ...] | None:
    return tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None


def _told(result: Any) -> str:
    """The shape of a result, or its tensors' by name."""
    if isinstance(result, Tensor):
        return f"of shape {tuple(result.shape)}"
    held = list(leaves(result))
    if [name for name, _ in held] == [""]:
        return f"a {type(result).__name__}"
    return ", ".join(f"{name} {tuple(v.shape)}" if isinstance(v, Tensor) else f"{name} {v!r}" for name, v in held)


def _suspects(ann: nn.Module) -> str:
    """What the module does that a trace does not show, by name."""
    found = []
    for path, module in paths(ann, "", set()):
        what = repr(path) if path else "the ANN itself"
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        if any(not isinstance(hook, HOOKS) for hook in hooks):
            found.append(f"hooks of {what}")
        if "forward" in vars(module):
            found.append(f"a forward of {what} that was replaced")
        if type(module).__call__ is not nn.Module.__call__:
            found.append(f"a __call__ of {what} of its own")
        if parametrize.is_parametrized(module):
            found.append(f"the parametrisation of {what}")
    return f"it has {', '.join(found)}. {CAUSES[0].upper()}{CAUSES[1:]}" if found else CAUSES


def _first_infinite(graph: GraphRun) -> str:
    wrong = (n for n, v in graph.results.items() if isinstance(v, Tensor) and not bool(torch.isfinite(v).all()))
    node = next(wrong, None)
    return f"node {node.name!r} ({node.target})" if node is not None else "the last layer"
