"""``SimulationInput``: what ``simulate`` and ``budget`` need, from a checkpoint or a NIR file: the network and its test images.

A checkpoint names the data that its network was trained on, and so does a NIR file that ``export`` wrote; for any other NIR file
the caller names them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spikeprop_hardware import lay_out
from torch import Tensor

from spikeprop.deploy import ENCODERS, export, from_nir, read_nir
from spikeprop.errors import NirError
from spikeprop.experiment.network_checkpoint import (
    NORMALISATION,
    data_component,
    data_settings,
    find_checkpoints,
    load_spiking,
    own_data,
)
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.files import parse_json
from spikeprop.runtime.own_folders import own_folder
from spikeprop.snn import SpikingNetwork

HDF5 = b"\x89HDF\r\n\x1a\n"  # the first bytes of every NIR file


@dataclass(frozen=True)
class SimulationInput:
    """A spiking network in PyTorch and as a NIR file.

    Attributes:
        network: in evaluation mode.
        file: NIR file that holds it.
        timesteps: of a simulation, at most those of a sequence; None where they are not known.
        data: the data set's name and settings; empty where they are not known.
        seed: of the encoder.
        trusted: packages that the file may have imported.
        named: data set that the caller names, in place of the file's.
    """

    network: SpikingNetwork
    file: Path
    timesteps: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    trusted: Collection[str] = ()
    named: str | None = None

    def with_options(self, *, timesteps: int | None, use: str | None = None, **data: Any) -> SimulationInput:
        """The same with the caller's options in place of the file's; None keeps the file's."""
        given = {key: value for key, value in data.items() if value is not None}
        return replace(self, timesteps=timesteps or self.timesteps, data={**self.data, **given}, named=use or self.named)

    def images(self, samples: int) -> tuple[Any, Tensor]:
        """The first test images, or of sequences their first ``timesteps`` steps, and their labels.

        Raises:
            NirError: data or number of steps are not known; or the network does not read such images.
        """
        source = self.named or self.data.get("use")
        wanted = {"--data": source, "--timesteps": self.timesteps}
        missing = [option for option, value in wanted.items() if not value]
        if missing:
            raise NirError(f"{self.file} does not say how to simulate it; pass {' and '.join(missing)}")
        data = data_component(self.data, self.trusted, named=self.named).build()
        if data.input_shape != self.network.input_shape:
            raise NirError(
                f"the network reads {self.network.input_shape}, but images of {type(data).__name__} are {data.input_shape}; "
                "pass another --data"
            )
        outputs = list(self.network.shapes().values())[-1]
        if outputs != (data.classes,):
            raise NirError(f"the network has outputs {outputs}, but {type(data).__name__} has {data.classes} classes")
        unknown = [key for key in NORMALISATION if hasattr(data, key) and key not in self.data]
        if unknown:
            raise NirError(
                f"{self.file} does not say how its network's images are normalised, (pixel / 255 - mean) / std; pass "
                f"{' and '.join(f'--{key}' for key in unknown)} (one number, or one a channel: 0.49,0.48,0.45; 0 and 1 for none)"
            )
        images, labels = next(data.test(samples).epoch(0))
        if not data.in_time or self.timesteps is None:
            return images, labels
        return first_steps(images, self.timesteps), labels

    def simulated_steps(self, images: Any) -> int | None:
        """Steps of a simulation of still samples; None for sequences, which have their own."""
        return self.timesteps if len(images.shape) == len(self.network.input_shape) + 1 else None


@contextmanager
def open_simulation_input(
    path: Path, network: str | None = None, encoder: str | None = None, trusted: Collection[str] = ()
) -> Iterator[SimulationInput]:
    """A checkpoint or a NIR file, whichever ``path`` is; a checkpoint's NIR file exists only within the block.

    Args:
        path: checkpoint or run folder that ``run`` wrote, NIR file that ``export`` wrote, or a NIR file from elsewhere.
        network: "converted", "finetuned" or "trained" of a run folder; default the last one.
        encoder: "Direct" or "Poisson", for a NIR file that does not name its own.
        trusted: packages that the file may have imported, for its network and its data.

    Raises:
        CheckpointError: a checkpoint that is damaged, or of an ANN.
        NirError: a NIR file that is damaged, or holds something that is not supported.
    """
    if network is None and _is_nir(path):
        found, own = _read(path, encoder), own_folder(path.parent)
        data = {**found.data, **own_data(own, found.data)}
        yield replace(found, data=data, trusted=(*trusted, *own.packages()))
        return
    (checkpoint,) = find_checkpoints(path, [network] if network else [])
    loaded = load_spiking(checkpoint, trusted)
    about = loaded.description
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.nir"
        export(loaded.network, file, about)
        yield SimulationInput(loaded.network, file, loaded.timesteps, loaded.data, about.get("seed", 0), loaded.trusted)


def first_steps(x: Any, steps: int) -> Any:
    """The first steps of sequences (B, T, ...) or ``Sequences``."""
    if isinstance(x, Sequences):
        return Sequences(x.values[:, :steps], x.lengths.clamp(max=steps))
    return x[:, :steps]


def _is_nir(path: Path) -> bool:
    if path.suffix == ".nir" or not path.is_file():
        return path.suffix == ".nir"
    with path.open("rb") as file:
        return file.read(len(HDF5)) == HDF5


def _read(path: Path, encoder: str | None) -> SimulationInput:
    graph = read_nir(path)
    lay_out(graph)  # also checks that shapes fit each other
    metadata = graph.metadata or {}
    if encoder is None and "encoder" not in metadata:
        raise NirError(f"{path} does not name its encoder; pass --encoder {' or '.join(ENCODERS)}")
    if encoder is not None and str(metadata.get("encoder", encoder)) != encoder:
        raise NirError(
            f"{path} names its encoder, {metadata['encoder']}, and its integers are made for that one; leave --encoder out"
        )
    network = from_nir(graph, encoder=ENCODERS[encoder]() if encoder is not None else None)
    try:
        steps = int(metadata["timesteps"]) if "timesteps" in metadata else None
        seed = int(metadata.get("seed", 0))
        if steps is not None and steps < 1:
            raise ValueError(f"{steps} steps")
    except (TypeError, ValueError, OverflowError) as error:
        raise NirError(f"{path}: the metadata's timesteps or seed is invalid: {error}") from error
    return SimulationInput(network, path, steps, _data(path, metadata), seed)


def _data(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        data = parse_json(metadata.get("data", "{}"))
    except (TypeError, ValueError) as error:
        raise NirError(f"{path}: the metadata's data is not the JSON that `spikeprop export` writes: {error}") from error
    if not isinstance(data, dict):
        raise NirError(f"{path}: the metadata's data is {data!r}, not the JSON object that `spikeprop export` writes")
    return data_settings(data)
