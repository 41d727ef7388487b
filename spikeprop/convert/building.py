"""``spiking``: an ordinary module with neurons where non-linearities stand, as a spiking network that is trained from scratch.

    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), sp.LIF(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2704, 10))
    network = sp.spiking(net, (1, 28, 28))

The module is traced as an ANN is for its conversion, by the same tables of operations, so residuals, concatenations, branches and
layers that are called several times work. A neuron becomes a layer, what stands between neurons its synapses. The network owns
copies of the module's parameters, with the same values; what the module shares, the network shares. The module stays as it was.

What was built is proved: a copy of the module in float64, with random batch-norm, runs step after step with the neurons called
where they stand (``snn/in_place.py``), and gives, spike for spike, what its network gives.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spikeprop.convert.builder import Builder, operations
from spikeprop.convert.graph import built
from spikeprop.convert.guard import CAUSES
from spikeprop.convert.place import told
from spikeprop.convert.plain import HOOKS, unwrapped
from spikeprop.convert.trace import called_name, trace
from spikeprop.errors import ConversionError
from spikeprop.snn import Direct, Encoder, LayerDynamics, SpikingNetwork, Synapse
from spikeprop.snn.in_place import Call, Edge, PlainLoop, Recurrent
from spikeprop.snn.normalisation import NORMS, TemporalBatchNorm
from spikeprop.snn.output_form import leaves
from spikeprop.snn.readout import Read

STEPS, SAMPLES = 4, 2  # of the proof
SIZES = (1.0, 10.0, 100.0)  # of random inputs, until all neurons fire
Edges = dict[str, list[tuple[str, nn.Module]]]  # layer: (source, operation) of what comes back
Feedback = Mapping[str, Any]  # layer: (source, operation), or a list of these


@torch.inference_mode(False)  # or the network could not be trained
def spiking(
    module: nn.Module,
    input_shape: Sequence[int] | int,
    *,
    encoder: Encoder | None = None,
    read: Read | None = None,
    feedback: Feedback | None = None,
) -> SpikingNetwork:
    """A spiking network of an ordinary module, with the module's values as they are.

    A layer of neurons is called as its neuron's path in the module, with underscores for dots, and with ``_2`` and so on for
    further calls of the same neuron, each of which has a state of its own. A module that ends in a neuron gets a readout that
    counts its spikes.

    Args:
        module: of convolutions, linear layers, batch-norm, dropout, pooling, shapes, sums and concatenations, as modules or as
            functions, with neurons (``LIF()``, ``Recurrent(LIF(), nn.Linear(n, n))``, any ``LayerDynamics``) between them.
        input_shape: shape of what enters at one step, without the batch, for example (3, 32, 32); a number of a vector.
        encoder: from sample to input; default ``Direct()``.
        read: how the values of the last layer make the output, "sum" (the default), "mean", "last" or "max". The last layer is
            what the module ends in; with ``Integrator(leak=...)`` at the end its potentials are read.
        feedback: layer to (source, operation), or a list of these: what the source sent one step before comes to the layer's
            current through the operation, such as ``nn.Linear``.

    Returns:
        the network, in the module's mode (training or evaluation).

    Raises:
        ConversionError: an operation that is no part of a spiking network (ReLU, softmax, ...), with the remedy; weights that are
            computed; a module without neurons, with hooks that change something, or whose network is not what it computes.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    inner = _checked(module, shape, encoder)
    _check_training(inner, shape)
    edges = _edges(feedback)
    network = _network(inner, encoder if encoder is not None else Direct(), shape, edges)[1]
    if read is not None:
        network.read = read
    found = _difference(inner, shape, edges)
    if found is not None:
        raise ConversionError(f"{type(inner).__name__} cannot be made a spiking network: {found}")
    return network.train(inner.training)


def _network(module: nn.Module, encoder: Encoder, shape: tuple[int, ...], edges: Edges) -> tuple[Builder, SpikingNetwork]:
    traced = trace(module, shape)
    back = {name: [(source, Synapse(operations(op))) for source, op in given] for name, given in copy.deepcopy(edges).items()}
    builder, network = built(traced, None, encoder, shape, back)
    _check_edges(builder, edges)
    _check_parameters(module, builder, network)
    *_, (_, last) = network.named_layers()
    if not any(synapse.ops for _, _, synapse in last.branches()) and last.neuron is None:
        network.notes.append("the module ends in neurons: the output is the count of their spikes")
    return builder, network


# checks -------------------------------------------------------------------------------------------------------------------------


def _checked(module: Any, shape: tuple[Any, ...], encoder: Any) -> nn.Module:
    """The module without wrappers, if a network can be built of it."""
    if not isinstance(module, nn.Module):
        raise ConversionError(f"module is a {type(module).__name__}; pass an instance of an nn.Module with neurons in it")
    if isinstance(module, SpikingNetwork):
        raise ConversionError("module is a SpikingNetwork already")
    if not all(isinstance(n, int) and n > 0 for n in shape) or not shape:
        raise ConversionError(f"input_shape is {shape}; give the shape of one sample without the batch, such as (3, 32, 32)")
    if isinstance(encoder, type):
        raise ConversionError(f"encoder is the class {encoder.__name__}; pass an instance, {encoder.__name__}()")
    if encoder is not None and not isinstance(encoder, Encoder):
        raise ConversionError(f"encoder is a {type(encoder).__name__}; pass an encoder such as Direct()")
    inner = unwrapped(module)
    inner = nn.Sequential(inner) if isinstance(inner, LayerDynamics | Recurrent) else inner
    if not any(isinstance(part, LayerDynamics | Recurrent) for part in inner.modules()):
        raise ConversionError(
            f"{type(inner).__name__} holds no neurons: put spikeprop.LIF() where a non-linearity stands; to turn a trained ANN "
            "into spikes call spikeprop.convert(ann, images)"
        )
    for path, part in inner.named_modules():
        computed = any(isinstance(h, HOOKS) for h in part._forward_pre_hooks.values()) or parametrize.is_parametrized(part)
        if computed:
            raise ConversionError(
                f"the weights of {path!r} ({type(part).__name__}) are computed (pruning, weight or spectral norm, a "
                "parametrisation), and would be trained as plain numbers: make them permanent first, with "
                "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove"
            )
    return inner


def _check_training(module: nn.Module, shape: tuple[int, ...]) -> None:
    """The network is what the module does in evaluation mode, and dropout and batch-norm as they are in training."""
    graphs = [trace(module, shape, training=training).graph for training in (False, True)]
    calls = [[(n.op, called_name(n)) for n in graph.nodes] for graph in graphs]
    if calls[0] != calls[1]:
        more = next((n for n, one, other in zip_longest(graphs[1].nodes, *reversed(calls)) if one != other), None)
        where = told(more.meta.get("place")) if more is not None else ""
        raise ConversionError(
            f"{type(module).__name__} does something else in training mode than in evaluation mode{where}, which its network "
            "would not do: leave it out, or use nn.Dropout and nn.BatchNorm2d, which know both modes"
        )


def _edges(feedback: Feedback | None) -> Edges:
    """Layer to (source, operation) of each edge, names as the network has them."""
    found: Edges = {}
    for name, given in (feedback or {}).items():
        for edge in given if isinstance(given, list) else [given]:
            if not (isinstance(edge, tuple) and len(edge) == 2 and isinstance(edge[0], str) and isinstance(edge[1], nn.Module)):
                raise ConversionError(f"feedback of {name!r} is {edge!r}; give (name of the source, nn.Linear(...)), or a list")
            found.setdefault(name.replace(".", "_"), []).append((edge[0].replace(".", "_"), edge[1]))
    return found


def _check_edges(builder: Builder, edges: Edges) -> None:
    for name in (*edges, *(source for given in edges.values() for source, _ in given)):
        if name not in builder.calls:
            raise ConversionError(f"feedback names {name!r}, which is no layer of neurons; these are {', '.join(builder.calls)}")


def _check_parameters(module: nn.Module, builder: Builder, network: SpikingNetwork) -> None:
    """The network trains the parameters of the modules that are called, each as one, and no others."""
    back = {id(p) for _, layer in network.named_layers() for _, _, s in layer.feedback_branches() for p in s.parameters()}
    mine = {id(p): p for p in network.parameters()}
    theirs = {id(p): path for path, p in builder.traced.named_parameters()}
    for key, parameter in mine.items():
        if key not in theirs and key not in back:
            parameter.requires_grad_(False)  # a constant of the module, such as a factor
    called = [str(node.target) for node in builder.traced.graph.nodes if node.op in ("call_module", "get_attr")]
    lost = [
        path for key, path in theirs.items() if key not in mine and any(path == c or path.startswith(f"{c}.") for c in called)
    ]
    if lost:
        raise ConversionError(
            f"{type(module).__name__} cannot be made a spiking network: its parameter {lost[0]!r} would not be trained, because "
            "it is used outside of convolutions, linear layers, batch-norm and neurons"
        )


# the proof ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _difference(module: nn.Module, shape: tuple[int, ...], edges: Edges) -> str | None:
    """The first difference between the module in a plain loop and its network, in words; None if there is none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, edges = _random_copy(module, edges)
        builder, network = _network(module, Direct(), shape, edges)
        network.eval().packed = False
        like = next(network.parameters(), torch.empty(0, dtype=torch.float64))
        neurons = [part for part in module.modules() if isinstance(part, LayerDynamics)]
        held = [dict(vars(neuron)) for neuron in neurons]
        for size in SIZES:
            difference, all_fire = _difference_on(module, builder, network, size * torch.randn(SAMPLES, *shape).to(like))
            if difference is not None:  # rounding may move one spike, but not on the next input too
                difference, all_fire = _difference_on(module, builder, network, size * torch.randn(SAMPLES, *shape).to(like))
            for neuron, before in zip(neurons, held):
                changed = [name for name, value in vars(neuron).items() if before.get(name, neuron) is not value]
                if changed:
                    return (
                        f"{type(neuron).__name__} keeps {changed[0]!r} on itself from step to step, which would last from one "
                        "batch to the next: what lasts longer than a step belongs in the state that step takes and returns"
                    )
            if difference is not None:
                return difference
            if all_fire:
                return None
    return None


def _random_copy(module: nn.Module, edges: Edges) -> tuple[nn.Module, Edges]:
    """The module and the feedback in float64, in evaluation mode, their batch-norms with numbers that tell channels apart."""
    try:
        own, back = copy.deepcopy((module, edges))
    except Exception as error:
        raise ConversionError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}); keep what is no weight and no setting "
            "outside the module"
        ) from error
    for part in (own, *(op for given in back.values() for _, op in given)):
        part.double().eval()
        for norm in part.modules():
            if isinstance(norm, NORMS) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2.0)
                if norm.affine:
                    norm.weight.mul_(torch.empty_like(norm.weight).uniform_(0.5, 2.0))
                    norm.bias.normal_(std=0.1)
    return own, back


def _difference_on(module: nn.Module, builder: Builder, network: SpikingNetwork, x_B: Tensor) -> tuple[str | None, bool]:
    """The first difference on one input, and whether every layer of neurons fired."""
    steps = next((m.timesteps for m in network.modules() if isinstance(m, TemporalBatchNorm)), STEPS)
    sent: dict[str, list[Tensor]] = {}
    output = network(x_B, steps, observe=lambda name, spikes_TB: sent.setdefault(name, []).append(spikes_TB))
    sent_T = {name: torch.cat(parts) for name, parts in sent.items()}
    loop, total = PlainLoop(module, _calls(builder, network)), dict[str, Any]()
    for t in range(steps):
        for key, leaf in leaves(loop.step(x_B)):
            total[key] = total.get(key, 0) + leaf
        for name, call in builder.calls.items():
            if name in sent_T and not torch.equal(sent_T[name][t], loop.sent[call]):
                return f"layer {name!r} does not send what neuron {call[0]!r} sends in a plain loop, at step {t}; {CAUSES}", False
    found = dict(leaves(network.structured(output)))
    for key, wanted in total.items():
        if found[key].shape != wanted.shape or not torch.allclose(found[key], wanted, rtol=1e-9, atol=1e-9):
            return f"its output is not that of the module in a plain loop; {CAUSES}", False
    return None, all(bool(sent_T[name].any()) for name in builder.calls if name in sent_T)


def _calls(builder: Builder, network: SpikingNetwork) -> dict[Call, list[Edge]]:
    """The feedback between the calls of the module's neurons that the network has between its layers."""
    shapes, found = network.shapes(), dict[Call, list[Edge]]()
    for name, given in builder.feedback.items():
        for source, synapse in given:
            edge = (builder.calls[source], shapes[source], nn.Sequential(*synapse.ops))
            found.setdefault(builder.calls[name], []).append(edge)
    return found
