"""Intact real files of every kind that spikeprop reads from elsewhere; the fuzzing starts from them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from spikeprop import CNN, IF, LIF, Backprop, Digits, Direct, GradedIF, Poisson, fit
from spikeprop.convert import to_spiking
from spikeprop.deploy import export
from spikeprop.learn import load_checkpoint, save_checkpoint
from spikeprop.recipe import recipe_folder
from spikeprop.snn import ALIF, CubaLIF, Integrator, Layer, SpikingNetwork, Synapse
from tests.data import layouts

SUFFIXES = {
    "recipe": ".yaml", "checkpoint": ".safetensors", "nir": ".nir", "cifar": "", "image": ".JPEG", "json": ".json",
    "nmnist": ".bin", "aedat2": ".aedat", "aedat3": ".aedat", "gesture": ".npy", "spikes": ".h5", "frames": ".npz",
    "sound": ".wav",
}  # fmt: skip
KINDS = tuple(SUFFIXES)
RECORDINGS = KINDS[6:]
ANN: dict[str, Any] = {"use": "CNN", "input_shape": [1, 8, 8], "classes": 10, "plan": [2, "A"], "hidden": [], "dropout": 0.0}


@dataclass(frozen=True)
class Seed:
    """A file's bytes and, if its kind has any, its parts.

    Attributes:
        content: the file.
        tensors, description: of a checkpoint.
    """

    content: bytes
    tensors: dict[str, Tensor] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)


@cache
def seeds(kind: str) -> list[Seed]:
    """The files of a kind."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        return _MAKERS[kind](Path(folder))


def _recipes(folder: Path) -> list[Seed]:
    return [Seed(p.read_bytes()) for p in sorted(recipe_folder().glob("*.yaml"))]


def _about(kind: str) -> dict[str, Any]:
    return {
        "kind": kind, "ann": ANN, "neuron": {"use": "LIF", "leak": 0.9, "surrogate": {"use": "STDB", "alpha": 0.3, "beta": 0.01}},
        "encoder": {"use": "Poisson"}, "timesteps": 4, "input_shape": [1, 8, 8], "seed": 0,
        "data": {"use": "Digits", "mean": 0.0, "std": 1.0},
    }  # fmt: skip


def _ann() -> CNN:
    return CNN(input_shape=(1, 8, 8), classes=10, plan=[2, "A"], hidden=[], dropout=0.0)


def _checkpoints(folder: Path) -> list[Seed]:
    ann, file = _ann(), folder / "progress.safetensors"
    optimizer = torch.optim.Adam(ann.parameters(), lr=1e-3)
    fit(ann, Backprop(), Digits(train_limit=32).train(16, 0), optimizer, epochs=1, checkpoint=file)
    save_checkpoint(folder / "ann.safetensors", ann, _about("ann"))
    save_checkpoint(folder / "snn.safetensors", to_spiking(ann, lambda: LIF(leak=0.9), Poisson(), (1, 8, 8)), _about("snn"))
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        if "previous" not in path.name:
            read = load_checkpoint(path)
            found.append(Seed(path.read_bytes(), read.tensors, read.description))
    return found


class Residual(nn.Module):
    """A skip connection, a convolution in groups, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.pool, self.last = nn.AvgPool2d(4), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        return self.last(torch.flatten(self.pool(x), 1))


def _recurrent() -> SpikingNetwork:
    """Feedback that is an edge back and feedback that needs a Delay, neurons with more state, an integrator."""
    torch.manual_seed(0)
    back = [("b", Synapse([nn.Linear(4, 5)])), ("a", Synapse([nn.Linear(5, 5)]))]
    layers = {
        "a": Layer([("input", Synapse([nn.Flatten(), nn.Linear(64, 5)]))], CubaLIF(), feedback=back),
        "b": Layer([("input", Synapse([nn.Flatten(), nn.Linear(64, 4)])), ("a", Synapse([nn.Linear(5, 4)]))], ALIF()),
        "out": Layer([("b", Synapse([nn.Linear(4, 10)]))], Integrator()),
    }
    return SpikingNetwork(layers, Direct(), (1, 8, 8))


def _nir(folder: Path) -> list[Seed]:
    networks = [
        to_spiking(_ann(), IF, Direct(), (1, 8, 8)),
        to_spiking(_ann(), lambda: LIF(leak=0.9, reset="zero"), Poisson(), (1, 8, 8)),
        to_spiking(Residual(), IF, Direct(), (1, 8, 8)),
        to_spiking(_ann(), GradedIF, Direct(), (1, 8, 8)),
        _recurrent(),
    ]
    for number, network in enumerate(networks):
        export(network, folder / f"{number}.nir", _about("snn"))
    return [Seed(p.read_bytes()) for p in sorted(folder.glob("*.nir"))]


class _Python2(pickle._Pickler):  # type: ignore[name-defined,misc]  # pyright: ignore[reportAttributeAccessIssue]
    """Writes bytes as Python 2's strings, as in CIFAR's files."""

    def save_string(self, value: bytes) -> None:
        head = pickle.SHORT_BINSTRING + bytes([len(value)]) if len(value) < 256 else b"T" + len(value).to_bytes(4, "little")
        self.write(head + value)  # pyright: ignore[reportAttributeAccessIssue]
        self.memoize(value)  # pyright: ignore[reportAttributeAccessIssue]

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string}  # type: ignore[attr-defined]  # noqa: RUF012


def _cifar(folder: Path) -> list[Seed]:
    source, found = np.random.default_rng(0), []
    for count in (1, 3):
        images = source.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {b"data": images, b"labels": [int(n) for n in source.integers(0, 10, count)], b"filenames": [b"a.png"] * count}
        file = io.BytesIO()
        _Python2(file, 2).dump(batch)
        found += [Seed(file.getvalue()), Seed(pickle.dumps(batch, 3))]
    return found


def _images(folder: Path) -> list[Seed]:
    source, found = np.random.default_rng(0), []
    smooth = np.add.outer(np.arange(24), np.arange(20))[..., None] * np.array([3, 4, 5])
    colour = Image.fromarray((smooth + source.integers(0, 40, smooth.shape)).astype(np.uint8))
    for image in (colour, colour.convert("L"), colour.convert("CMYK"), colour.convert("P"), colour.convert("RGBA")):
        for form, how in (("JPEG", {}), ("JPEG", {"progressive": True, "quality": 30}), ("PNG", {})):
            file = io.BytesIO()
            try:
                image.save(file, form, **how)
            except OSError:  # not every format supports every mode
                continue
            found.append(Seed(file.getvalue()))
    return found


def _json(folder: Path) -> list[Seed]:
    stages = {"data": {"seconds": 0.1, "commit": None, "result": {"use": "Digits"}}, "ann": {"seconds": 1.0, "result": {}}}
    run = {"recipe": {"use": "HybridConversion", "seed": 0}, "smoke": False, "commit": "abc", "machine": {"cores": 2}}
    return [Seed(json.dumps(value, indent=2).encode()) for value in (stages, run)]


def _recordings(kind: str) -> Callable[[Path], list[Seed]]:
    """Two files of a kind of recording, one of a few events and one of more."""

    def make(_: Path) -> list[Seed]:
        return [Seed(_RECORDING[kind](count)) for count in (3, 40)]

    return make


def _packets(count: int) -> bytes:
    events = layouts.rows(count, (2, 128, 128))
    return layouts.aedat3(layouts.packet(events[:-2]), layouts.packet([(1, 0, 0, 0)], kind=0), layouts.packet(events[-2:]))


def _saved(save: Callable[..., None], *values: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *values, **named)
    return file.getvalue()


_RECORDING: dict[str, Callable[[int], bytes]] = {
    "nmnist": lambda count: layouts.nmnist(layouts.rows(count, (2, 34, 34))),
    "aedat2": lambda count: layouts.aedat2(layouts.rows(count, (2, 128, 128))),
    "aedat3": _packets,
    "gesture": lambda count: _saved(
        np.save, np.array([(x, y, p, t / 1000) for t, x, y, p in layouts.rows(count, (2, 128, 128))])
    ),
    "spikes": lambda count: layouts.spike_trains([np.arange(count) / 64] * 3, [np.arange(count)] * 3, [0, 1, 19]),
    "frames": lambda count: _saved(np.savez_compressed, x=np.ones((count, 4, 3)), y=np.zeros(count, int)),
    "sound": lambda count: layouts.sound(np.arange(100 * count)),
}
_MAKERS = {
    "recipe": _recipes, "checkpoint": _checkpoints, "nir": _nir, "cifar": _cifar, "image": _images, "json": _json,
    **{kind: _recordings(kind) for kind in _RECORDING},
}  # fmt: skip
