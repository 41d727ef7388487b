"""Network checkpoints: written with a description, found in run folders, loaded; and the check that a recipe's network can work.

A checkpoint's description says how to build the network that its tensors fit. An ANN is built from its component; a spiking
network from its ANN's component, converted without calibration, since thresholds are tensors of the checkpoint. So a checkpoint
needs neither its recipe nor its run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from spikeprop import data as spikeprop_data
from spikeprop.ann.weight_files import SUFFIXES, check_there
from spikeprop.ann.weights import find_weights
from spikeprop.convert import to_spiking
from spikeprop.data import ImageData, LabelledData
from spikeprop.errors import CheckpointError, RecipeError, SimulationError, SpikepropError, told
from spikeprop.experiment.zoo import located, shown
from spikeprop.learn import Checkpoint, load_checkpoint, load_model
from spikeprop.learn.checkpoint import save_checkpoint
from spikeprop.recipe import Component, check_component
from spikeprop.runtime.imports import only_trusted, package_of
from spikeprop.runtime.own_folders import OwnFolder, own_folder
from spikeprop.snn import Encoder, Gain, Neuron, SpikingNetwork, Synapse
from spikeprop.snn.description import describe, described_network
from spikeprop.snn.synapse import WEIGHTED

T = TypeVar("T")

LARGEST_INPUT = 2**26  # numbers; photographs of 224 x 224 have 150,528
NORMALISATION = ("mean", "std")
READING = (  # settings of data sets that decide what a network reads of an example, and that a file may give
    *NORMALISATION, "frames", "dt", "duration", "kind", "tau", "downsample", "sensor_size", "name", "classes", "frame_shape",
    "timesteps", "scale", "encoder", "bands", "hop", "window", "lowest", "highest", "subfolder",
)  # fmt: skip
OWN = (  # the same of data of one's own; they are of no use to another data set
    "size", "channels", "transforms", "names", "holdout", "image_column", "label_column", "split_column", "suffix", "images",
    "labels", "layout", "arguments", "train_arguments", "test_arguments", "test_from", "class_count",
)  # fmt: skip
FILES = ("table", "test_table", "train_file", "test_file", "train_labels", "test_labels", "train_folder", "test_folder")
SMALL = 100_000  # numbers that are never too many
NETWORKS = ("ann", "converted", "finetuned", "trained")  # the checkpoints of a run folder, in the order of its pipeline


@dataclass(frozen=True)
class LoadedNetwork:
    """A network from a checkpoint, in evaluation mode, with the description that came with it.

    Attributes:
        network, description: as in the checkpoint.
        trusted: packages that the checkpoint may have imported: those that the caller named, and those of a folder of the user's.
        own_data: data set of a folder of the user's, with its root; empty for a checkpoint from elsewhere.
    """

    network: nn.Module
    description: dict[str, Any]
    trusted: tuple[str, ...] = ()
    own_data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timesteps(self) -> int | None:
        """Of a spiking network's simulation; None where a network that was saved by itself does not say it."""
        return self.description.get("timesteps")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample at one step."""
        described = self.description
        return tuple(described["network"]["input_shape"] if "network" in described else described["input_shape"])

    @property
    def data(self) -> dict[str, Any]:
        """Settings of the data that it was trained on; empty where they are not known."""
        return {**data_settings(self.description.get("data") or {}), **self.own_data}


@dataclass(frozen=True)
class LoadedSpikingNetwork(LoadedNetwork):
    """The same of a spiking network."""

    network: SpikingNetwork


def find_checkpoints(path: str | Path, networks: Sequence[str] = ()) -> list[Path]:
    """The checkpoint at ``path``, or those of the run folder there: the networks named, or the last one of the pipeline.

    Args:
        path: of a file or a folder, or ``zoo:NAME``.
        networks: names.

    Raises:
        CheckpointError: no such checkpoint, naming those that are there; no such network in the zoo.
    """
    path = located(path)
    if not path.is_dir():
        if networks:
            raise CheckpointError(f"{path} is no run folder, so there is nothing to choose; leave --network out")
        return [path]
    present = [name for name in NETWORKS if (path / f"{name}.safetensors").is_file()]
    absent = [name for name in networks if name not in present]
    if absent or not present:
        if not present:
            missing = f"{absent[0]}.safetensors" if absent else "ann, converted, finetuned or trained.safetensors"
            raise CheckpointError(f"{path} has no {missing}: it is not the folder of a run; `spikeprop ls runs` lists those")
        raise CheckpointError(f"{path} has no {absent[0]}.safetensors; it has {', '.join(present)}")
    chosen = [name for name in NETWORKS if name in networks] or present[-1:]
    return [path / f"{name}.safetensors" for name in chosen]


def save(
    network: SpikingNetwork, path: str | Path, *, timesteps: int | None = None, data: LabelledData | None = None, seed: int = 0
) -> None:
    """Write a spiking network with its structure to a safetensors file, and what it is in JSON beside it: no pickle, no code.

    Args:
        network: converted, or made by ``spikeprop.spiking``, of layers and neurons that ``snn/description.py`` can describe.
        path: ends in .safetensors.
        timesteps: that it is meant to run for, for ``spikeprop eval`` and others that ask for none.
        data: that it was trained on, whose normalisation is kept.
        seed: of the encoder.

    Raises:
        CheckpointError: something that a description cannot hold, by name; no spiking network; another suffix; or data that are
            no data set of spikeprop, a number of steps that is none.
    """
    if not isinstance(network, SpikingNetwork):
        raise CheckpointError(
            f"{type(network).__name__} is no spiking network; save an ANN with torch.save(model.state_dict(), path), or convert "
            "it first"
        )
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path} does not end in .safetensors, the format in which networks are saved")
    if timesteps is not None and (type(timesteps) is not int or timesteps < 1):
        raise CheckpointError(f"timesteps is {timesteps!r}; give a whole number of at least 1, or leave it out")
    if type(seed) is not int:
        raise CheckpointError(f"seed is {seed!r}; give a whole number")
    if data is not None and not isinstance(data, LabelledData):
        raise CheckpointError(
            f"data is a {type(data).__name__}, which does not say by itself how images are normalised; leave data out, or pass "
            f"spikeprop's data set: {_same_data(data)}"
        )
    kind = type(data)
    name = kind.__name__ if kind.__module__.startswith("spikeprop.") else f"{kind.__module__}.{kind.__name__}"
    given = {"timesteps": timesteps, "data": None if data is None else {"use": name, **reading(data)}, "seed": seed}
    about = {key: value for key, value in given.items() if value is not None}
    save_checkpoint(Path(path), network, {"kind": "snn", **about, "network": described(network)})


def _same_data(data: Any) -> str:
    """How spikeprop writes the data of a DataLoader or Dataset of torchvision's, as far as it can be seen."""
    while hasattr(data, "dataset"):  # of a DataLoader, a Subset
        data = data.dataset
    steps = getattr(getattr(data, "transform", None), "transforms", ())
    normal = next((step for step in steps if type(step).__name__ == "Normalize"), None)
    mean, std = ([float(v) for v in getattr(normal, key, ())] or "..." for key in NORMALISATION)
    name, root = type(data).__name__, getattr(data, "root", "...")
    known = name if isinstance(getattr(spikeprop_data, name, None), type) else "ImageFolder"
    return f"spikeprop.data.{known}(root={str(root)!r}, mean={mean}, std={std})"


def described(network: SpikingNetwork) -> dict[str, Any]:
    """The structure of a network, for the entry ``network`` of a checkpoint's description.

    Raises:
        CheckpointError: something that a description cannot hold, by name.
    """
    try:
        return describe(network)
    except SimulationError as error:
        raise CheckpointError(f"the network cannot be saved by itself: {error}") from error


def load(source: str | Path, trusted: Collection[str] = ()) -> SpikingNetwork:
    """The spiking network of a file, of a run folder (the last of its pipeline), or of the zoo by its name.

    Args:
        source: path, or a name such as "digits-cnn-stdb" that ``spikeprop ls zoo`` shows (also "zoo:NAME").
        trusted: packages that the file may have imported.

    Returns:
        the network in evaluation mode; its notes say for how many steps and which data it was calibrated or trained, where that
        is known.

    Raises:
        CheckpointError, RecipeError: as ``load_network``; an ANN, or no such network in the zoo.
    """
    (file,) = find_checkpoints(source)
    loaded = load_spiking(file, trusted)
    known = {"T": loaded.timesteps, **loaded.data}
    text = ", ".join(f"{'data' if key == 'use' else key} = {value}" for key, value in known.items() if value is not None)
    described = loaded.description
    how = "calibrated" if "calibrated_for" in described else "trained" if "input_shape" in described else "made"
    notes = [described.get("why"), f"{how} for {text}" if text else None]
    loaded.network.notes += [note for note in notes if note and note not in loaded.network.notes]
    return loaded.network


def describe_network(model: nn.Module, experiment: Any, data: LabelledData, timesteps: int) -> dict[str, Any]:
    """What ``load_network`` needs, in JSON values."""
    return {
        "kind": "snn" if isinstance(model, SpikingNetwork) else "ann",
        **experiment.describe_model(model),
        "timesteps": timesteps,
        "input_shape": list(data.input_shape),
        "data": {"use": experiment.data.use, **reading(data)},
        "seed": experiment.seed,
    }


def reading(data: LabelledData) -> dict[str, Any]:
    """The settings of a data set that decide what a network reads of an example."""
    own = {field.name for field in fields(data)}
    given = {k: getattr(data, k) for k in (*READING, *OWN, *FILES) if k in own or (k in NORMALISATION and hasattr(data, k))}
    return {key: value for key, value in (given | data.found()).items() if key not in (*OWN, *FILES) or value is not None}


def data_component(
    described: Mapping[str, Any], trusted: Collection[str] = (), *, named: str | None = None, **settings: Any
) -> Component[LabelledData]:
    """The data set that a file describes, or the one that the user named instead of it.

    The package of ``named`` is trusted, since the user named it; other packages that the file names are not.

    Args:
        described: name and settings, from a checkpoint, a NIR file or a run folder.
        trusted: packages that the file may have imported.
        named: the user's data set, as ``--data`` has it.
        settings: the user's settings, which replace those described; None leaves the described one.

    Raises:
        RecipeError: no such data set or setting, or code from outside.
    """
    given = {key: value for key, value in {"use": named, **settings}.items() if value is not None}
    found = {**(described if named is None else data_settings(described)), **given}
    if found.get("root") or found.get("use") != described.get("use"):  # the user's own folder, or another set
        found.pop("subfolder", None)
    if found.get("use") != described.get("use"):
        found = {key: value for key, value in found.items() if key not in (*OWN, *FILES) or key in given}
    own = [] if named is None or ("." not in named and ":" not in named) else [package_of(named)]
    with only_trusted((*trusted, *own)):
        return check_component(LabelledData, found, "data" if named is None else "--data")


def data_settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the data that a checkpoint or a NIR file may give; folders and download are for the user to choose."""
    files = [key for key in FILES if isinstance(described.get(key), str) and Path(described[key]).name == described[key]]
    return {key: described[key] for key in ("use", *READING, *OWN, *files) if key in described}


def own_data(own: OwnFolder, described: Any) -> dict[str, Any]:
    """The data set of a folder of the user's, all that its recipe gives; nothing where a file there describes another one."""
    if not isinstance(described, Mapping) or own.data.get("use") != described.get("use"):
        return {}
    return {key: value for key, value in own.data.items() if value is not None and key not in ("train_limit", "test_limit")}


def load_network(path: str | Path, trusted: Collection[str] = (), *, as_stranger: bool = False) -> LoadedNetwork:
    """Build the network of a checkpoint and load its tensors.

    Names and shapes of tensors are checked, not what the ANN's class computes: the conversion was proved when the checkpoint was
    made, and a class of your own that was changed since (a stride, an activation) gives another network with the same tensors.

    A checkpoint may come from anyone. So a network that is far larger than its tensors is refused, and code from outside is not
    imported unless the user names it, or ran it in this folder before (``runtime/own_folders.py``).

    Args:
        path: the checkpoint.
        trusted: packages that it may have imported, beside torch, snnTorch and the like, and those already imported.
        as_stranger: also where the folder is the user's own, no code from outside is imported unless it is named.

    Raises:
        CheckpointError: damaged, not a network's checkpoint, or of another architecture (naming tensors).
        RecipeError: its description names what does not exist, or code from outside.
    """
    checkpoint = load_checkpoint(path)
    if "kind" not in checkpoint.description:
        raise CheckpointError(f"{path} holds training progress; use ann, converted, finetuned or trained.safetensors")
    own = OwnFolder() if as_stranger else own_folder(Path(path).parent)
    allowed = (*trusted, *own.packages())
    try:
        with only_trusted(allowed):
            return replace(_build(checkpoint), trusted=allowed, own_data=own_data(own, checkpoint.description.get("data")))
    except SpikepropError:
        raise
    except Exception as error:  # a description from elsewhere can be wrong in any way
        raise CheckpointError(f"{path} describes a network that cannot be built: {type(error).__name__}: {error}") from error


def load_spiking(path: str | Path, trusted: Collection[str] = ()) -> LoadedSpikingNetwork:
    """``load_network`` for a spiking network.

    Raises:
        CheckpointError: it is an ANN, or as ``load_network``.
        RecipeError: as ``load_network``.
    """
    loaded = load_network(path, trusted)
    if not isinstance(loaded.network, SpikingNetwork):
        source = shown(Path(path).parent)
        raise CheckpointError(
            f"{path} is an ANN; give the converted or finetuned checkpoint of its run: `spikeprop convert {source}` makes one"
        )
    return LoadedSpikingNetwork(loaded.network, loaded.description, loaded.trusted, loaded.own_data)


def _build(checkpoint: Checkpoint) -> LoadedNetwork:
    described = checkpoint.description
    if isinstance(described.get("network"), dict):  # built by itself
        _check_shape(checkpoint.path, described["network"].get("input_shape"))
        _check_run(checkpoint, required=False)
        try:
            network = described_network(described["network"], checkpoint.section("model"))
        except SimulationError as error:
            raise CheckpointError(f"{checkpoint.path} cannot be built: {error}") from error
        network.readout.take_read(checkpoint.section("model").get("readout.read"))
        load_model(network, checkpoint)
        return LoadedNetwork(network.eval(), described)
    _check_description(checkpoint)
    ann_component = check_component(nn.Module, described["ann"], "ann")
    if "weights" in ann_component.arguments:
        ann_component = ann_component.replace(weights=None)  # the checkpoint's tensors replace them
    _check_size(ann_component, checkpoint)
    network = ann_component.build()
    if described["kind"] == "snn":
        neuron = check_component(Neuron, described["neuron"], "neuron")
        encoder = check_component(Encoder, described["encoder"], "encoder").build()
        network = to_spiking(network, neuron.build, encoder, tuple(described["input_shape"]))
        _make_room(network, checkpoint.section("model"))
        network.readout.take_read(checkpoint.section("model").get("readout.read"))
        network.calibrated_for = described.get("calibrated_for")
    load_model(network, checkpoint)
    return LoadedNetwork(network.eval(), described)


def _check_description(checkpoint: Checkpoint) -> None:
    described, path = checkpoint.description, checkpoint.path
    _check_shape(path, described.get("input_shape"))
    if described["kind"] not in ("ann", "snn") or not isinstance(described.get("data"), dict):
        raise CheckpointError(f"{path} has no valid description of a network: its kind or its data is missing")
    if described["kind"] == "snn":
        _check_run(checkpoint, required=True)


def _check_run(checkpoint: Checkpoint, *, required: bool) -> None:
    """Steps, seed and data, which a network that was saved by itself need not have."""
    described = checkpoint.description
    kinds = {"timesteps": int, "seed": int, "data": dict, "calibrated_for": int, "why": str}
    wrong = [
        key
        for key, kind in kinds.items()
        if ((required and key not in ("calibrated_for", "why")) or described.get(key) is not None)
        and type(described.get(key)) is not kind
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} has no valid description of a spiking network: {', '.join(wrong)} is missing or invalid"
        )


def _check_shape(path: Path, shape: Any) -> None:
    sizes = shape if isinstance(shape, list) and shape and all(type(n) is int and n > 0 for n in shape) else None
    if sizes is None or math.prod(sizes) > LARGEST_INPUT:
        raise CheckpointError(f"{path} has the input shape {shape!r}; an image may have at most {LARGEST_INPUT:,} numbers")


def _check_size(ann: Component[nn.Module], checkpoint: Checkpoint) -> None:
    """Refuse a described network that is far larger than the checkpoint's tensors, before it takes memory."""
    with torch.device("meta"):
        try:
            needed = sum(p.numel() for p in ann.build().parameters())
        except Exception:  # not every constructor works on the meta device
            return
    held = sum(t.numel() for t in checkpoint.section("model").values())
    if needed > 4 * held + SMALL:
        raise CheckpointError(f"{checkpoint.path} describes a network of {needed:,} numbers, and holds {held:,}")


def check_network(ann: Component[nn.Module], neuron: Component[Neuron], encoder: Component[Encoder], data: ImageData) -> None:
    """Build an ANN, compute its outputs for one image and convert it, without training and without data on disk.

    The conversion is proved on random images, as ``convert`` will do after training: a second for most networks, about 15
    seconds and 4 GB of memory for VGG-16 with photographs.

    Raises:
        RecipeError: it cannot be built, cannot read the data's images, or has another number of outputs than there are classes.
        ConversionError: it holds something that cannot be converted.
    """
    outputs = _cheapest(ann, data, lambda network, outputs: outputs)
    if outputs[:2] != (1, data.classes) or outputs[2:] != data.label_shape:
        fix = f"set ann.classes={data.classes}" if "classes" in ann.parameters() else "change its last layer"
        name, found = type(data).__name__, outputs[1] if len(outputs) == 2 else f"scores of shape {outputs} and not the"
        raise RecipeError(f"{ann.path}: {ann.use} has {found} outputs, but data: {name} has {data.classes} classes; {fix}")
    with torch.random.fork_rng(devices=[]):
        network, _ = _outline(ann, data, torch.device("cpu"))
        to_spiking(network, neuron.build, encoder.build(), data.input_shape, images=torch.rand(2, *data.input_shape))


def outline_network(
    ann: Component[nn.Module], neuron: Component[Neuron], encoder: Component[Encoder], data: ImageData
) -> SpikingNetwork:
    """The spiking network that an ANN will become, by its shapes: without weights where that is possible; errors as above."""
    return _cheapest(ann, data, lambda network, _: to_spiking(network, neuron.build, encoder.build(), data.input_shape))


def _cheapest(ann: Component[nn.Module], data: ImageData, use: Callable[[nn.Module, tuple[int, ...]], T]) -> T:
    """What ``use`` makes of an ANN and the shape of its outputs, on the meta device if that works.

    Not every constructor works there, and no conversion that reads a value: the CPU shows whether it is a mistake.
    """
    try:
        return use(*_outline(ann, data, torch.device("meta")))
    except Exception:
        return use(*_outline(ann, data, torch.device("cpu")))


def check_buildable(ann: Component[nn.Module]) -> None:
    """Raises RecipeError for an ANN that cannot be built, whatever its weights are."""
    try:
        with torch.device("meta"):
            _made(ann)
    except Exception:
        own = ann.parameters().get("weights")
        if own is None or own.default is None:  # it can do without
            _made(ann.replace(weights=None) if own is not None else ann)


def check_weights(ann: Component[nn.Module]) -> None:
    """Raises CheckpointError if a file of weights is not there."""
    weights = ann.arguments.get("weights")
    if isinstance(weights, str) and Path(weights.partition("#")[0]).suffix in SUFFIXES:
        check_there(find_weights(weights.partition("#")[0]))


def _made(ann: Component[nn.Module]) -> nn.Module:
    try:
        return ann.build().eval()
    except (RuntimeError, ArithmeticError, LookupError, AssertionError) as error:
        raise RecipeError(f"{ann.path}: {ann.use} cannot be built: {told(error)}") from error


@torch.no_grad()
def _outline(ann: Component[nn.Module], data: ImageData, device: torch.device) -> tuple[nn.Module, tuple[int, ...]]:
    """An ANN on ``device`` ("meta" computes shapes only), and the shape of its outputs for one image."""
    shape = data.input_shape  # before the device counts: a data set of one's own reads an example for it
    with device:
        network = _made(ann)
        try:
            return network, tuple(network(torch.zeros(1, *shape)).shape)
        except Exception as error:
            raise RecipeError(
                f"{ann.path}: {ann.use} cannot read the images of data: {type(data).__name__}, which are "
                f"{'x'.join(map(str, shape))}: {told(error)}"
            ) from error


def _make_room(network: SpikingNetwork, tensors: dict[str, torch.Tensor]) -> None:
    """Give the new network what calibration added: gains before synapses, biases, tensors of another shape."""
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
        if bias is not None and isinstance(op, WEIGHTED) and op.bias is None:
            op.bias = nn.Parameter(torch.zeros_like(bias))
