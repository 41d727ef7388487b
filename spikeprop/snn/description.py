"""A spiking network in JSON values, from which, with its tensors, it is built again: without the code that first built it.

A module is described by its class and by its constructor's arguments, which it must keep as attributes of the same names; numbers
in tensors are in the checkpoint. Each description is tried at once: what is built from it has the same settings and the same
tensors, or an error names what was lost. Modules and parameters that are one stay one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.errors import SimulationError
from spikeprop.runtime.imports import importable
from spikeprop.snn.arithmetic import Joined
from spikeprop.snn.call import Call
from spikeprop.snn.described_call import call_again, described_call
from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.encoder import Encoder
from spikeprop.snn.engine.support import STATELESS
from spikeprop.snn.gather import Gather, Shift
from spikeprop.snn.layer import Layer
from spikeprop.snn.network import SpikingNetwork
from spikeprop.snn.normalisation import NORMS, OWN_NORMS
from spikeprop.snn.output_form import OutputForm
from spikeprop.snn.pooling import SpikingMaxPool, StepMaxPool
from spikeprop.snn.signed import GradedIF
from spikeprop.snn.surrogate import Surrogate
from spikeprop.snn.synapse import WEIGHTED, Synapse

PADS = tuple(
    getattr(nn, f"{kind}Pad{n}d") for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular") for n in (1, 2, 3)
)
FUNCTIONS = tuple(
    getattr(nn, name)
    for name in ("LayerNorm", "GroupNorm", "RMSNorm", "LocalResponseNorm", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "ReLU",
                 "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GLU", "Hardtanh", "Hardsigmoid", "Hardswish",
                 "LogSigmoid", "Softplus", "Softsign", "Softmax", "Softmin", "LogSoftmax", "Tanhshrink")
)  # of layers that compute  # fmt: skip
OPERATIONS: dict[str, Any] = {kind.__name__: kind for kind in (*WEIGHTED, *NORMS, *STATELESS, *PADS, *FUNCTIONS, Call, Joined)}
SAME = {nn.modules.linear.NonDynamicallyQuantizableLinear: nn.Linear}  # classes that compute as another
PLAIN = (bool, int, float, str, type(None))
BATCH_NORM = ("eps", "momentum", "affine", "track_running_stats")
POOL = ("kernel_size", "stride", "padding", "ceil_mode")
TRAINED = {"v_threshold": "threshold", "w": "leak"}  # name of a neuron's parameter: what its ``trainable`` calls it, if otherwise
SMALL = 100_000  # numbers that are never too many


def describe(network: SpikingNetwork) -> dict[str, Any]:
    """What ``described_network`` needs beside the network's ``state_dict``, in JSON values.

    Raises:
        SimulationError: an operation, neuron or structure of outputs that cannot be described, by name.
    """
    known: dict[int, int] = {}
    layers = [_described_layer(name, layer, known) for name, layer in network.named_layers()]
    names = list(network.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    tied = {name: first[id(p)] for name, p in names if first.setdefault(id(p), name) != name}
    return {
        "input_shape": list(network.input_shape),
        "encoder": _described(network.encoder, "the encoder"),
        "layers": layers,
        "tied": tied,
        "frozen": [name for name, p in names if not p.requires_grad],
        "notes": list(network.notes),
        "calibrated_for": network.calibrated_for,
        "read": network.read,
        "output_form": None if network.output_form is None else network.output_form.described(),
    }


def described_network(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SpikingNetwork:
    """The network of a description, with tensors of the shapes of ``tensors``, whose values are yet to be loaded.

    Raises:
        SimulationError: a description of something else, of code that may not be imported, or of more numbers than there are.
    """
    left = 4 * sum(t.numel() for t in tensors.values()) + SMALL
    known: list[nn.Module] = []
    layers = {str(given["name"]): _layer(given, known, left) for given in described["layers"]}
    encoder = _built(described["encoder"], Encoder)
    network = SpikingNetwork(layers, encoder, tuple(described["input_shape"]))
    _make_room(network, tensors)
    for name, held in described["tied"].items():
        _put(network, name, network.get_parameter(held))
    for name in described["frozen"]:
        network.get_parameter(name).requires_grad_(False)
    network.notes = list(described["notes"])
    steps = described.get("calibrated_for")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise SimulationError(f"the description says calibrated for {steps!r}, which is no number of steps")
    network.calibrated_for = steps
    network.read = described.get("read", "sum")
    form = described.get("output_form")
    network.output_form = None if form is None else OutputForm.from_description(form)
    return network


# layers -------------------------------------------------------------------------------------------------------------------------


def _described_layer(name: str, layer: Layer, known: dict[int, int]) -> dict[str, Any]:
    def branches(given: Any) -> list[dict[str, Any]]:
        return [{"source": s, "ops": [_once(op, f"layer {name!r}", known) for op in synapse]} for _, s, synapse in given]

    return {
        "name": name,
        "synapses": branches(layer.branches()),
        "feedback": branches(layer.feedback_branches()),
        "neuron": None if layer.neuron is None else _once(layer.neuron, f"layer {name!r}", known),
        "ceiling": None if layer.ceiling is None else layer.ceiling.tolist(),
        "channel_axis": layer.channel_axis,
        "may_rest": layer.may_rest,
    }


def _layer(given: Mapping[str, Any], known: list[nn.Module], left: int) -> Layer:
    def branches(key: str) -> list[tuple[str, Synapse]]:
        return [(str(b["source"]), Synapse([_again(op, nn.Module, known, left) for op in b["ops"]])) for b in given[key]]

    synapses, feedback = branches("synapses"), branches("feedback")
    neuron = None if given["neuron"] is None else _again(given["neuron"], LayerDynamics, known, left)
    ceiling = None if given["ceiling"] is None else torch.tensor(given["ceiling"])
    layer = Layer(synapses, neuron, ceiling, feedback=feedback)
    layer.channel_axis, layer.may_rest = int(given["channel_axis"]), bool(given["may_rest"])
    return layer


def _once(module: nn.Module, where: str, known: dict[int, int]) -> dict[str, Any]:
    """A module's description, or the number of the one that it is."""
    if id(module) in known:
        return {"same_as": known[id(module)]}
    known[id(module)] = len(known)
    return _described(module, where)


def _again(given: Mapping[str, Any], kind: type, known: list[nn.Module], left: int) -> Any:
    if "same_as" in given:
        return known[given["same_as"]]
    _check_size(given, kind, left)
    known.append(_built(given, kind))
    return known[-1]


def _check_size(given: Mapping[str, Any], kind: type, left: int) -> None:
    """Refuse a module that is far larger than all tensors together before it takes memory."""
    if given.get("use") == "Gather":
        return  # its numbers are in the description
    with torch.device("meta"):
        needed = sum(t.numel() for t in _built(given, kind).parameters())
    if needed > left:
        raise SimulationError(f"a {given.get('use')} of {needed:,} numbers is described, far more than there are")


# modules ------------------------------------------------------------------------------------------------------------------------


def _described(thing: Any, where: str) -> dict[str, Any]:
    """Class and settings of a module, a neuron, an encoder or a surrogate."""
    kind: Any = SAME.get(type(thing), type(thing))
    operation = OPERATIONS.get(kind.__name__) is kind
    if isinstance(thing, nn.Module) and not operation and not isinstance(thing, LayerDynamics):
        raise SimulationError(f"{where} holds a {kind.__name__}, which a description does not know; use a layer of torch.nn")
    found = {"use": kind.__name__ if operation else f"{kind.__module__}.{kind.__qualname__}", "settings": _settings(thing, where)}
    again = _built(found, kind)
    lost = [name for name, value in _plain(thing) if name not in vars(again) or vars(again)[name] != value]
    if isinstance(thing, nn.Module):
        lost += sorted(set(thing.state_dict()) ^ set(again.state_dict()))
    if lost:
        raise SimulationError(
            f"{where} holds a {kind.__name__} whose {lost[0]!r} does not follow from its constructor's arguments: keep each "
            "argument as an attribute of the same name, and set nothing else afterwards"
        )
    return found


def _plain(thing: Any) -> Iterator[tuple[str, Any]]:
    """The settings that an object holds."""
    for name, value in vars(thing).items():
        if name != "training" and not name.startswith("_") and isinstance(value, (*PLAIN, tuple)):
            yield name, value


def _settings(thing: Any, where: str) -> dict[str, Any]:
    if is_dataclass(thing):
        return {f.name: _value(getattr(thing, f.name), where) for f in fields(thing) if f.init}
    if isinstance(thing, Call):
        return described_call(thing, where, _described)
    if isinstance(thing, Gather):
        return {"index": thing._places[0].reshape(thing.shape).tolist(), "size": thing.size}
    if isinstance(thing, SpikingMaxPool | StepMaxPool):
        window: Any = thing.window
        axes = int(type(window).__name__[len("MaxPool")])
        return {**{name: _value(getattr(window, name), where) for name in POOL}, "axes": axes}
    found = {}
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in ("device", "dtype"):
            continue
        if name == "trainable":
            held = [key for key, _ in thing.named_parameters(recurse=False)]
            found[name] = [TRAINED.get(key, key) for key in held]
        elif name == "bias" and isinstance(thing, (*WEIGHTED, *NORMS, nn.LayerNorm)):
            found[name] = thing.bias is not None
        elif hasattr(thing, name):
            found[name] = _value(getattr(thing, name), f"{name!r} of a {type(thing).__name__} in {where}")
        elif parameter.default is parameter.empty:
            raise SimulationError(
                f"{where} holds a {type(thing).__name__} that does not keep its argument {name!r} as an attribute, so it cannot "
                "be described: keep it"
            )
    if isinstance(thing, OWN_NORMS):
        found |= {name: getattr(thing, name) for name in (*BATCH_NORM, "v_threshold", "alpha")}
        if "bias" in inspect.signature(nn.BatchNorm2d).parameters:  # not of every version of PyTorch
            found["bias"] = thing.bias is not None or not thing.affine
    return found


def _value(value: Any, where: str) -> Any:
    """A setting in JSON values; of a tensor one number of those that the checkpoint holds."""
    if isinstance(value, Tensor):
        return float(value.detach().double().mean()) if value.numel() else 0.0
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple | list):
        return [_value(part, where) for part in value]
    if isinstance(value, Surrogate | nn.Module):
        return _described(value, where)
    raise SimulationError(f"{where} is a {type(value).__name__}, which a description cannot hold")


def _built(given: Mapping[str, Any], kind: Any) -> Any:
    target = _target(str(given["use"]), kind)
    if target is Call:
        return call_again(given["settings"], lambda module: _built(module, nn.Module))
    settings = {name: _given(value) for name, value in given["settings"].items()}
    if target is Gather:
        return Gather(torch.tensor(settings["index"], dtype=torch.long, device="cpu"), settings["size"])
    if target is Shift:
        return Shift(torch.tensor(settings["shift"]))
    if issubclass(target, GradedIF):
        settings |= {"surrogate": None}  # descriptions of before name one, which was never used
    return target(**settings)


def _given(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_given(part) for part in value)
    return _built(value, Surrogate | nn.Module) if isinstance(value, dict) else value


def _target(use: str, kind: Any) -> Any:
    """The class of that name."""
    if use in OPERATIONS:
        found = OPERATIONS[use]
    else:
        module, _, name = use.rpartition(".")
        if not importable(module):
            raise SimulationError(f"the description names {use!r}, code from outside; trust its package to import it")
        found = getattr(importlib.import_module(module), name, None)
    if not inspect.isclass(found) or not issubclass(found, kind):
        raise SimulationError(f"the description names {use!r}, which is no {getattr(kind, '__name__', kind)}")
    return found


# tensors ------------------------------------------------------------------------------------------------------------------------


def _make_room(network: SpikingNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the shapes and types of the tensors, as calibration or ``.double()`` left them."""
    for name, own in list(chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))):
        wanted = tensors.get(name)
        if wanted is not None and (wanted.shape != own.shape or wanted.dtype != own.dtype):
            room = torch.empty_like(wanted)
            _put(network, name, nn.Parameter(room, own.requires_grad) if isinstance(own, nn.Parameter) else room)


def _put(network: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    holder = network.get_submodule(path)
    if isinstance(tensor, nn.Parameter):
        holder._parameters[last] = tensor
    else:
        holder._buffers[last] = tensor
