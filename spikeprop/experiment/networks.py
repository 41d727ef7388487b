"""Networks in and out of checkpoints, and the test that a recipe's network can work, made before it is trained.

A checkpoint's description says how to build the network that its tensors fit.

An ANN is built from its component; a spiking network from its ANN's component, converted without calibration, since
thresholds are tensors of the checkpoint. So a checkpoint needs neither its recipe nor its run folder.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikeprop.convert import to_spiking
from spikeprop.data import ImageData
from spikeprop.errors import CheckpointError, RecipeError, SpikepropError
from spikeprop.learn import Checkpoint, load_checkpoint, load_model
from spikeprop.recipe import Component, component
from spikeprop.runtime.imports import from_file
from spikeprop.snn import Encoder, Gain, Neuron, SpikingNetwork, Synapse

LARGEST_INPUT = 2**26  # numbers; photographs of 224 x 224 have 150,528
SMALL = 100_000  # numbers that are never too many


@dataclass(frozen=True)
class LoadedNetwork:
    """A network from a checkpoint, in evaluation mode, with the description that came with it."""

    network: nn.Module
    description: dict[str, Any]


def describe_network(model: nn.Module, experiment: Any, data: ImageData) -> dict[str, Any]:
    """What ``load_network`` needs, in JSON values."""
    return {
        "kind": "snn" if isinstance(model, SpikingNetwork) else "ann",
        "ann": experiment.ann.describe(),
        "neuron": experiment.convert.neuron.describe(),
        "encoder": experiment.convert.encoder.describe(),
        "timesteps": experiment.finetune.timesteps,
        "input_shape": list(data.input_shape),
        "data": {"use": experiment.data.use, "mean": data.mean, "std": data.std},
        "seed": experiment.seed,
    }


def described_data(
    described: Mapping[str, Any], trusted: Collection[str] = (), *, named: str | None = None, **settings: Any
) -> Component[ImageData]:
    """The data set that a file describes, or the one that the user named instead of it.

    Whoever names a class on the command line means its code to run, as whoever runs a recipe does; so the package of ``named`` is
    trusted, and nothing else that the file says is for that.

    Args:
        described: name and settings, by a checkpoint, a NIR file or a run folder.
        trusted: packages that the file may have imported.
        named: data set of the user's, as ``--data`` has it.
        settings: the user's own, in place of those described; None says nothing.

    Raises:
        RecipeError: no such data set or setting, or code from outside.
    """
    given = {key: value for key, value in {"use": named, **settings}.items() if value is not None}
    own = [named.partition(".")[0]] if named is not None and "." in named else []
    with from_file((*trusted, *own)):
        return component(ImageData, {**described, **given}, "data" if named is None else "--data")


def said_of_data(described: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint or a NIR file may say of the data; where they lie and whether to fetch them is the user's to say."""
    return {key: described[key] for key in ("use", "mean", "std") if key in described}


def load_network(path: str | Path, trusted: Collection[str] = ()) -> LoadedNetwork:
    """Build the network of a checkpoint and fill in its tensors.

    A checkpoint may come from anyone, so what it describes is held to what its tensors can fill, and code from outside is not
    imported for it unless named.

    Args:
        path: the checkpoint.
        trusted: packages that it may have imported, beside torch, snnTorch and the like, and those already imported.

    Raises:
        CheckpointError: damaged, not a network's checkpoint, or of another architecture (naming tensors).
        RecipeError: its description names what does not exist, or code from outside.
    """
    checkpoint = load_checkpoint(path)
    if "kind" not in checkpoint.description:
        raise CheckpointError(f"{path} holds training progress; use ann, converted or finetuned.safetensors")
    try:
        with from_file(trusted):
            return _build(checkpoint)
    except SpikepropError:
        raise
    except Exception as error:  # a description that we did not write can be wrong in any way
        raise CheckpointError(f"{path} describes a network that cannot be built: {type(error).__name__}: {error}") from error


def _build(checkpoint: Checkpoint) -> LoadedNetwork:
    described = checkpoint.description
    _check_description(checkpoint)
    ann_component = component(nn.Module, described["ann"], "ann")
    if "weights" in ann_component.arguments:
        ann_component = ann_component.replace(weights=None)  # the checkpoint's tensors replace them
    _check_size(ann_component, checkpoint)
    network = ann_component.build()
    if described["kind"] == "snn":
        neuron = component(Neuron, described["neuron"], "neuron")
        encoder = component(Encoder, described["encoder"], "encoder").build()
        network = to_spiking(network, neuron.build, encoder, tuple(described["input_shape"]))
        _make_room(network, checkpoint.part("model"))
    load_model(network, checkpoint)
    return LoadedNetwork(network.eval(), described)


def _check_description(checkpoint: Checkpoint) -> None:
    described, path = checkpoint.description, checkpoint.path
    shape = described.get("input_shape")
    sizes = shape if isinstance(shape, list) and shape and all(type(n) is int and n > 0 for n in shape) else None
    if sizes is None or math.prod(sizes) > LARGEST_INPUT:
        raise CheckpointError(
            f"{path} says that its network reads {shape!r}, which is no shape of inputs up to {LARGEST_INPUT:,} numbers"
        )
    if described["kind"] not in ("ann", "snn") or not isinstance(described.get("data"), dict):
        raise CheckpointError(f"{path} lacks what the checkpoint of a network says: its kind and its data")
    missing = [key for key in ("timesteps", "seed") if type(described.get(key)) is not int]
    if described["kind"] == "snn" and missing:
        raise CheckpointError(f"{path} lacks what the checkpoint of a spiking network says: {', '.join(missing)}")


def _check_size(ann: Component[nn.Module], checkpoint: Checkpoint) -> None:
    """The network described may not be far larger than the tensors that are to fill it: it is measured before it takes memory."""
    with torch.device("meta"):
        try:
            needed = sum(p.numel() for p in ann.build().parameters())
        except Exception:  # not every constructor can do without numbers
            return
    held = sum(t.numel() for t in checkpoint.part("model").values())
    if needed > 4 * held + SMALL:
        raise CheckpointError(f"{checkpoint.path} describes a network of {needed:,} numbers, and has {held:,}")


def check_network(ann: Component[nn.Module], neuron: Component[Neuron], encoder: Component[Encoder], data: ImageData) -> None:
    """Build an ANN, ask it for the scores of one image and convert it, without training and without data on disk.

    Raises:
        RecipeError: it cannot be built, cannot read the data's images, or has another number of outputs than there are classes.
        ConversionError: it holds something that cannot be converted.
    """
    try:
        network, outputs = _outline(ann, data, torch.device("meta"))
    except Exception:  # not every constructor can do without numbers: the CPU says whether it is a mistake
        network, outputs = _outline(ann, data, torch.device("cpu"))
    if outputs != (1, data.classes):
        fix = f"set ann.classes={data.classes}" if "classes" in ann.parameters() else "change its last layer"
        name, found = type(data).__name__, outputs[1] if len(outputs) == 2 else f"scores of shape {outputs} and not the"
        raise RecipeError(f"{ann.path}: {ann.use} has {found} outputs, but data: {name} has {data.classes} classes; {fix}")
    to_spiking(network, neuron.build, encoder.build(), data.input_shape)


@torch.no_grad()
def _outline(ann: Component[nn.Module], data: ImageData, device: torch.device) -> tuple[nn.Module, tuple[int, ...]]:
    """An ANN on ``device`` ("meta" computes shapes alone, in no time), and the shape of its scores for one image."""
    with device:
        try:
            network = ann.build().eval()
        except (RuntimeError, ArithmeticError, LookupError, AssertionError) as error:
            raise RecipeError(f"{ann.path}: {ann.use} cannot be built: {error}") from error
        try:
            return network, tuple(network(torch.zeros(1, *data.input_shape)).shape)
        except Exception as error:
            raise RecipeError(
                f"{ann.path}: {ann.use} cannot read the images of data: {type(data).__name__}, which are "
                f"{'x'.join(map(str, data.input_shape))}: {error}"
            ) from error


def _make_room(network: SpikingNetwork, tensors: dict[str, torch.Tensor]) -> None:
    """Give the fresh network what calibration added: gains before synapses, biases, tensors of another shape."""
    for name, layer in network.named_layers():
        for i, _, synapse in layer.branches():
            _make_room_in_synapse(synapse, f"layers.{name}.synapses.{i}.ops", tensors)
        scale = tensors.get(f"layers.{name}.scale")
        if scale is not None:
            layer.scale = torch.ones_like(scale)
        if isinstance(layer.neuron, Neuron):
            _make_room_in_neuron(layer.neuron, f"layers.{name}.neuron", tensors)


def _make_room_in_neuron(neuron: Neuron, key: str, tensors: dict[str, torch.Tensor]) -> None:
    theta, start = tensors.get(f"{key}.v_threshold"), tensors.get(f"{key}.v_init")
    if theta is not None:
        neuron.set_threshold(torch.ones_like(theta))
    if start is not None:
        neuron.v_init = torch.ones_like(start)


def _make_room_in_synapse(synapse: Synapse, key: str, tensors: dict[str, torch.Tensor]) -> None:
    gain = tensors.get(f"{key}.0.gain")
    first = next(iter(synapse), None)
    if gain is not None and not isinstance(first, Gain):
        synapse.ops.insert(0, Gain(torch.ones_like(gain)))
    elif gain is not None and isinstance(first, Gain):
        first.gain = torch.ones_like(gain)
    for j, op in enumerate(synapse):
        bias = tensors.get(f"{key}.{j}.bias")
        if bias is not None and isinstance(op, nn.Conv2d | nn.Linear) and op.bias is None:
            op.bias = nn.Parameter(torch.zeros_like(bias))
