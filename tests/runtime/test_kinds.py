"""A file of another kind is named, with what to do; it is not called damaged, not renamed, and nobody is told to delete it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from spikeprop_hardware import NirError, read_nir
from spikeprop_hardware.kinds import kind_of
from torch import nn

from spikeprop import Backprop, fit
from spikeprop.ann.weights import load_weights
from spikeprop.errors import CheckpointError, ForeignFileError, RecipeError
from spikeprop.learn import load_checkpoint, save_checkpoint
from spikeprop.recipe.text import find_recipe, read_recipe
from spikeprop.runtime.files import previous_of, read_json

ROOT = Path(__file__).parent.parent.parent


def _archive(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recipe.yaml", "a: 1")


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a"] = [1.0]


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "torch": (lambda p: torch.save(nn.Linear(2, 2).state_dict(), p), "a PyTorch file"),
    "old torch": (lambda p: torch.save({}, p, _use_new_zipfile_serialization=False), "a PyTorch file"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "a Python pickle"),
    "npz": (_npz, "a NumPy file"),
    "npy": (lambda p: p.write_bytes(np.lib.format.magic(1, 0) + b"v"), "a NumPy file"),
    "hdf5": (_hdf5, "an HDF5 file"),
    "safetensors": (lambda p: save_file({"a": torch.zeros(2)}, p), "a safetensors file"),
    "checkpoint": (lambda p: save_checkpoint(p, nn.Linear(2, 2), {}), "a checkpoint of spikeprop"),
    "zip": (_zip, "a ZIP archive"),
    "tar": (_archive, "a tar archive"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "a compressed file"),
    "png": (lambda p: Image.new("RGB", (2, 2)).save(p, "PNG"), "a picture"),
    "json": (lambda p: p.write_text(json.dumps({"a": [1]})), "a JSON file"),
    "yaml": (lambda p: p.write_text("name: x\nann: {use: CNN}\n"), "a YAML file"),
    "html": (lambda p: p.write_text("<!DOCTYPE html><html>sign in</html>"), "an HTML page"),
    "pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n"),
        "a Git LFS pointer",
    ),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
}


@pytest.fixture(params=FILES)
def given(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, str]:
    write, name = FILES[request.param]
    path = tmp_path / "file.bin"
    write(path)
    return request.param, path, name


def test_every_kind_is_recognised_and_named_wherever_another_belongs(given: tuple[str, Path, str]) -> None:
    which, path, name = given
    found = kind_of(path)
    assert found is not None
    assert found.name.startswith(name)
    if which not in ("checkpoint", "safetensors", "empty"):  # ours, truncated, may be empty
        with pytest.raises(CheckpointError, match=rf"is {re.escape(name)}.*, and a safetensors file belongs here: ") as error:
            load_checkpoint(path)
        assert "damaged" not in str(error.value)
    if which == "safetensors":
        with pytest.raises(CheckpointError, match="was not written by spikeprop"):
            load_checkpoint(path)
    if which != "hdf5":
        with pytest.raises(NirError, match=rf"file\.bin is {re.escape(name)}.*, and a NIR file belongs here"):
            read_nir(path)
    with pytest.raises(RecipeError, match=rf"file\.bin is {re.escape(name)}" if which != "yaml" else r"ends in \.yaml"):
        find_recipe(str(path))
    if which not in ("json", "yaml", "empty"):
        with pytest.raises(ForeignFileError, match=rf"file\.bin is {re.escape(name)}"):
            read_json(path)


def test_a_recipe_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    torch.save({}, path)
    with pytest.raises(RecipeError, match="is a PyTorch file"):
        read_recipe(path)


def test_a_file_that_is_not_ours_stays_where_it_is(tmp_path: Path) -> None:
    """It was renamed to .damaged where a previous checkpoint lay beside it."""
    model, path = nn.Linear(2, 2), tmp_path / "model.safetensors"
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    save_checkpoint(previous_of(path), model, {})
    torch.save(model.state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="is a PyTorch file"):
        fit(model, Backprop(), [(torch.rand(2, 2), torch.tensor([0, 1]))], sgd, epochs=1, checkpoint=path)
    assert path.read_bytes() == before


def test_weights_are_read_by_what_the_file_is_and_not_by_its_name(tmp_path: Path) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        model = nn.Linear(2, 2)
        load_weights(model, tmp_path / name)
        assert torch.equal(model.weight, state["weight"])
    _hdf5(tmp_path / "c.pth")
    with pytest.raises((CheckpointError, ForeignFileError), match="is an HDF5 file"):
        load_weights(nn.Linear(2, 2), tmp_path / "c.pth")


def test_no_message_advises_to_delete() -> None:
    """The flag --restart says what it does; nothing else tells a user to remove files."""
    found = []
    for file in [*(ROOT / "spikeprop").rglob("*.py"), *(ROOT / "hardware").rglob("*.py")]:
        for line in file.read_text(encoding="utf-8").splitlines():
            if (
                '"' in line
                and re.search(r"\bdelete (it|that|them|the)\b|\bremove the (file|folder)\b", line)
                and '"""' not in line
            ):
                found.append(f"{file.name}: {line.strip()}")
    assert not found
