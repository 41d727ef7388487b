"""What stands in a module of which a spiking network is built: neurons, batch-norm in training, max pooling of a step's spikes.

Here modules stay what they are: a weight that is used twice is one parameter, nothing is folded, and what is not linear must be a
neuron. A sum or a concatenation is computed by a layer of its own (``Relay``) before whatever must see all of it at once
(weights, batch-norm, dropout), and so is a value with weights that several operations read: each call of a module is one call.
``snn/folding.py`` takes these layers away again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.operations.rectifiers import rectifier_of
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import LinearBranch, Value
from spikeprop.snn import INPUT, LayerDynamics, SampleDropout
from spikeprop.snn.arithmetic import Relay
from spikeprop.snn.in_place import Recurrent
from spikeprop.snn.normalisation import NORMS
from spikeprop.snn.pooling import StepMaxPool
from spikeprop.snn.synapse import WEIGHTED

NEURONS = "put neurons in its place, such as spikeprop.LIF(); a trained ANN with such functions is for spikeprop.convert"
ONCE = (*WEIGHTED, *NORMS, SampleDropout)  # modules that must be called once for each time that the caller's module calls them
MAX_POOLS: dict[type, int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
FUNCTIONAL_MAX_POOLS = {f"max_pool{n}d": n for n in (1, 2, 3)}
WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def converted(builder: Builder, node: fx.Node) -> Value | None:
    """The value of a node that is treated otherwise than in a conversion; None for all others.

    Raises:
        ConversionError: names the node and the remedy.
    """
    module = builder.modules[str(node.target)] if node.op == "call_module" else None
    name = function_name(node) if module is None else ""
    if isinstance(module, LayerDynamics | Recurrent):
        return _neurons(builder, node, module)
    if rectifier_of(builder, node) is not None:
        what = type(module).__name__ if module is not None else name
        raise refuse(node, f"{what} is no operation of a spiking network", NEURONS)
    kind = next((base for base in type(module).__mro__ if base in MAX_POOLS), None)
    if kind is not None:
        return _max_pool(builder, node, MAX_POOLS[kind], {key: getattr(module, key) for key in WINDOW})
    if name in FUNCTIONAL_MAX_POOLS:
        return _max_pool(builder, node, FUNCTIONAL_MAX_POOLS[name], builder.arguments(node, *WINDOW))
    if "max_pool" in name or "MaxPool" in type(module).__name__:
        raise refuse(node, "adaptive max pooling", "give the window's size: nn.MaxPool2d")
    _check(builder, node, module, name)
    if isinstance(module, NORMS):
        return values.append(_summed(builder, node), module)
    if isinstance(module, WEIGHTED) or name in ("linear", "dropout") or name.startswith("conv") or type(module) is nn.Dropout:
        builder.values[node.args[0]] = _summed(builder, node)  # type: ignore[index]
    return None


def _check(builder: Builder, node: fx.Node, module: nn.Module | None, name: str) -> None:
    """Refuse what would be trained as something else."""
    if isinstance(module, NORMS) and (not module.track_running_stats or not builder.forms.plain(node)):
        raise refuse(node, "batch-norm without running statistics, or of an axis that is not axis 1", "use its default settings")
    if name in ("batch_norm", "instance_norm") or isinstance(module, nn.modules.instancenorm._InstanceNorm):
        raise refuse(node, "a normalisation that is not a module of batch-norm", "use nn.BatchNorm2d and the like")
    of_channels = isinstance(module, nn.modules.dropout._DropoutNd) and type(module) is not nn.Dropout
    if name in ("dropout1d", "dropout2d", "dropout3d") or of_channels:
        raise refuse(node, "dropout of complete channels, or with other values than 0", "use nn.Dropout")
    if node.op != "call_module" and name != "linear" and not name.startswith("conv"):
        held = [n.target for n in node.all_input_nodes if n.op == "get_attr" and _is_trained(builder, n)]
        if held:
            raise refuse(node, f"the parameter {held[0]!r} outside of a layer would not be trained", "use a layer: nn.Linear")


def _is_trained(builder: Builder, node: fx.Node) -> bool:
    value = builder.forms.constant(node)
    return isinstance(value, nn.Parameter) and value.requires_grad


def _neurons(builder: Builder, node: fx.Node, module: Any) -> Value:
    path = str(node.target)
    call = (path, sum(known == path for known, _ in builder.calls.values()))
    recurrent = isinstance(module, Recurrent)
    neuron: Any = module.neuron if recurrent else module
    back = module.synapse if recurrent else None
    name = builder.close(node, builder.value(node), neuron, label=path or "neurons", back=back)
    builder.calls[name] = call
    return (LinearBranch(name, kept=True),)


def _max_pool(builder: Builder, node: fx.Node, axes: int, given: dict[str, Any]) -> Value:
    """The largest spike of each window at each step."""
    dilation, indices = given.pop("dilation", 1), given.pop("return_indices", False)
    if indices or set(dilation if isinstance(dilation, tuple | list) else [dilation]) != {1}:
        raise refuse(node, "max pooling with dilation or indices", "leave them out")
    value = builder.value(node)
    if any(b.ops or b.source == INPUT for b in value) or len(value) != 1:
        what = "max pooling of currents, of sums of spikes or of the input"
        raise refuse(node, what, "pool the spikes, right after the neurons, or use average pooling")
    name = builder.close(node, value, StepMaxPool(**given, axes=axes), label=str(node.target) if node.op == "call_module" else "")
    return (LinearBranch(name, kept=True),)


def _summed(builder: Builder, node: fx.Node) -> Value:
    """The operand as one branch: a sum is computed by a layer of its own."""
    value = builder.value(node)
    if len(value) == 1:
        return value
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    builder.values[source] = (LinearBranch(builder.close(source, value, Relay(), suffix="_sum"), kept=True),)
    return builder.values[source]


def once(builder: Builder, node: fx.Node, value: Any) -> Any:
    """The value, from a layer of its own if several operations read it and its modules are to be called once."""
    users = [user for user in node.users if builder.forms.depends(user) or user.op == "output"]
    several = len(users) > 1 or any(not isinstance(builder.outline[user], Tensor) for user in users if user.op != "output")
    if not isinstance(value, tuple) or not several or not any(isinstance(op, ONCE) for b in value for op in b.ops):
        return value
    return (LinearBranch(builder.close(node, value, Relay(), suffix="_sum"), kept=True),)
