"""Loads weights from files of other projects by tensor name, and checks every shape."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from spikeprop_hardware import kinds
from torch import Tensor, nn

from spikeprop.errors import CheckpointError
from spikeprop.runtime.files import check_kind, read_tensors


def find_weights(path: Path) -> Path:
    """The file, or the file with that name in the folder ``weights`` of $SPIKEPROP_DATA."""
    root = os.environ.get("SPIKEPROP_DATA")
    if path.is_file() or root is None:
        return path
    stored = Path(root) / "weights" / path
    return stored if stored.is_file() else path


def load_tensors(model: nn.Module, path: Path) -> None:
    """Load a file of tensors into a model; every name and shape must match.

    Raises:
        CheckpointError: no such file, a damaged one, or tensors that do not fit.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; give its path, or put it into the folder weights of $SPIKEPROP_DATA")
    tensors = _unpickled(path) if _is_unpickled(path) else read_tensors(path)[0]
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from error


def _is_unpickled(path: Path) -> bool:
    """Whether torch.save wrote a file, by its content; by its name where it is neither that nor safetensors."""
    kind = kinds.kind_of(path)
    if kind is kinds.CHECKPOINT:
        raise CheckpointError(f"{path} is a checkpoint of spikeprop, whose tensors have other names: use load_network or `eval`")
    if kind in (kinds.TORCH, kinds.SAFETENSORS):
        return kind is kinds.TORCH
    check_kind(path, "a file of weights (safetensors, or torch.save of a state_dict)", kinds.PICKLE)
    return path.suffix != ".safetensors"


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote, by torch's restricted reader, which runs no other code of the file."""
    try:
        with open(path, "rb") as file:  # a name ending in .safetensors would make torch take it for that
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged, or contains more than tensors ({error}); save a state_dict") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} does not contain tensors by name; save the model's state_dict()")
    return found
