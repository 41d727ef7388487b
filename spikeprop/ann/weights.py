"""Weights from files: tensors of other people's networks, loaded by name, every shape checked."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from spikeprop.errors import CheckpointError


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
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from error
