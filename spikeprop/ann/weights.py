"""Weights from files: tensors of other people's networks, loaded by name, every shape checked."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeprop.errors import CheckpointError
from spikeprop.runtime.files import read_tensors


def find_weights(path: Path) -> Path:
    """The file itself, or the one of that name in the folder ``weights`` of $SPIKEPROP_DATA."""
    root = os.environ.get("SPIKEPROP_DATA")
    if path.is_file() or root is None:
        return path
    stored = Path(root) / "weights" / path
    return stored if stored.is_file() else path


def load_tensors(model: nn.Module, path: Path) -> None:
    """Load a file of tensors into a model, every name and shape matching."""
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    tensors = read_tensors(path)[0] if path.suffix == ".safetensors" else _unpickled(path)
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote, by torch's own reader that calls nothing but what tensors need."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged, or holds more than tensors ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} does not hold tensors by name")
    return found
