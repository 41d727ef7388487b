"""Checkpoints: one safetensors file with its description as JSON in the header, and the same JSON beside it to read.

The header is what is read back, so a checkpoint is one file, renamed into place whole. Tensors are named
``model.<name>``, ``optimizer.<parameter>.<key>`` and ``<part>.<name>`` of whatever else has a state; what is not a
tensor lives in the description. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spikeprop.errors import CheckpointError
from spikeprop.files import write_json, write_tensors

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the description that came with them."""

    path: Path
    tensors: dict[str, Tensor]
    description: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix.``, the prefix removed."""
        return {k.removeprefix(prefix + "."): v for k, v in self.tensors.items() if k.startswith(prefix + ".")}


def save_checkpoint(
    path: Path,
    model: nn.Module,
    description: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a network to ``path`` atomically, with ``description`` (JSON values) in the header and beside it.

    Args:
        path: the safetensors file.
        model: the network.
        description: JSON values.
        optimizer: saved too, to go on training.
        others: further tensors by prefix and name.
    """
    parts = {"model": model.state_dict(), **(others or {})}
    tensors = {f"{part}.{k}": v.detach().cpu().contiguous() for part, state in parts.items() for k, v in state.items()}
    described = {"format": FORMAT, **description}
    if optimizer is not None:
        state, groups = _split_optimizer(optimizer)
        tensors |= state
        described["optimizer"] = groups
    header = {"spikeprop": json.dumps(described)}
    write_tensors(path, tensors, header)
    write_json(path.with_suffix(".json"), described)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: no file, a damaged one, or one that spikeprop did not write.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}); delete it and run again") from error
    if "spikeprop" not in header:
        raise CheckpointError(f"{path} holds tensors but was not written by spikeprop: its header has no 'spikeprop' entry")
    description = json.loads(header["spikeprop"])
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {description.get('format')}, this spikeprop reads {FORMAT}; use the version that wrote it"
        )
    return Checkpoint(path, tensors, description)


def load_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into a model of the same architecture.

    Raises:
        CheckpointError: naming the tensors that are missing, unexpected or of another shape.
    """
    saved, own = checkpoint.part("model"), model.state_dict()
    problems = [f"missing {name}" for name in own if name not in saved]
    problems += [f"unexpected {name}" for name in saved if name not in own]
    problems += [
        f"{name} is {tuple(saved[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in own
        if name in saved and saved[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"{checkpoint.path} is of another architecture: {shown}")
    model.load_state_dict(saved)


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Restore an optimiser from the checkpoint of the same training run."""
    described = checkpoint.description["optimizer"]
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in described["values"].items()}
    for name, tensor in checkpoint.part("optimizer").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": described["groups"]})


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved = optimizer.state_dict()
    tensors, values = {}, {}
    for index, entries in saved["state"].items():
        values[str(index)] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
        tensors |= {f"optimizer.{index}.{k}": v.cpu().contiguous() for k, v in entries.items() if isinstance(v, Tensor)}
    return tensors, {"groups": saved["param_groups"], "values": values}
