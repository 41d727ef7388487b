"""Checkpoints: one safetensors file with its description as JSON in the header, and the same JSON beside it to read.

Only the header is read back, so a checkpoint is one file, which is renamed into place when it is complete. Tensors are named
``model.<name>``, ``optimizer.<parameter>.<key>`` and ``<section>.<name>`` for everything else with a state; all other values are
in the description. A tensor with several names (tied weights) is stored once; ``aliases`` in the description has the others.
Nothing is pickled. A checksum in the header covers the complete file. The progress of a training keeps the
previous checkpoint too, to continue from if the last one is damaged.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from spikeprop_hardware import kinds
from torch import Tensor, nn

from spikeprop.errors import CheckpointError, DamagedFileError, ForeignFileError
from spikeprop.learn.distributed.sharding import complete, is_sharded_tensor, sharded_like
from spikeprop.learn.fused import CHOICES
from spikeprop.runtime.files import parse_json, previous_of, read_tensors, write_json, write_tensors
from spikeprop.runtime.places import no_checkpoint

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the description that came with them."""

    path: Path
    tensors: dict[str, Tensor]
    description: dict[str, Any]

    def section(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix.``, the prefix removed."""
        return {k.removeprefix(prefix + "."): v for k, v in self.tensors.items() if k.startswith(prefix + ".")}


def save_checkpoint(
    path: Path,
    model: nn.Module,
    description: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    keep_previous: bool = False,
    writes: bool = True,
) -> None:
    """Write a network to ``path`` atomically, with ``description`` (JSON values) in the header and beside it.

    Args:
        path: the safetensors file.
        model: the network.
        description: JSON values.
        optimizer: saved too, to continue training.
        others: further tensors by prefix and name.
        keep_previous: keep the existing checkpoint beside the new one, for ``load_latest``.
        writes: whether this process writes; for a sharded network (``shard``) all processes call this and send their shards.
    """
    sections = {"model": model.state_dict(keep_vars=True), **(others or {})}
    named = {f"{name}.{k}": v for name, state in sections.items() for k, v in state.items()}
    aliases = find_aliases(named)
    tensors = _gathered(((name, v) for name, v in named.items() if name not in aliases), writes)
    described = {"format": FORMAT, **description, **({"aliases": aliases} if aliases else {})}
    if optimizer is not None:
        state, groups = _split_optimizer(optimizer)
        tensors |= _gathered(state.items(), writes)
        described["optimizer"] = groups
    if not writes:
        return
    header = {"spikeprop": json.dumps(described)}
    write_tensors(path, tensors, header, keep_previous=keep_previous)
    write_json(path.with_suffix(".json"), described)


def _gathered(tensors: Iterable[tuple[str, Tensor]], kept: bool) -> dict[str, Tensor]:
    """Complete tensors in the host's memory; a process that keeps none still takes part in gathering each."""
    found = {}
    for name, tensor in tensors:
        gathered = complete(tensor.detach())
        if kept:
            found[name] = gathered.cpu().contiguous()
    return found


def find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory as one before them, with the first one's name.

    A shard is the same as itself only, because its memory is empty in some processes, and all need the same names.
    """
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in tensors.items():
        if is_sharded_tensor(tensor):
            place = id(tensor)
        elif type(tensor) in (Tensor, nn.Parameter) and tensor.numel() and not tensor.is_meta:
            place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        else:
            continue
        if place in first:
            found[name] = first[place]
        else:
            first[place] = name
    return found


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: no file, a damaged one, or one that spikeprop did not write.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(no_checkpoint(path))
    try:
        return _read(path)
    except ForeignFileError as error:
        raise CheckpointError(str(error)) from error
    except DamagedFileError as error:
        raise CheckpointError(f"{error}; restore it from a copy, or run again with another --out folder") from error


def has_checkpoint(path: Path) -> bool:
    """Whether there is a file that ``load_latest`` could read."""
    return path.exists() or previous_of(path).exists()


def load_latest(path: Path) -> Checkpoint:
    """Read the progress of a training; if it is damaged, warn and read the checkpoint before it.

    A damaged file is renamed to end in ``.damaged``, so that the next write does not overwrite the good one with it.

    Raises:
        CheckpointError: neither can be read, or spikeprop did not write it.
    """
    previous = previous_of(path)
    if not path.exists() and previous.exists():  # killed between the two renamings
        return load_checkpoint(previous)
    try:
        return _read(path)
    except ForeignFileError as error:  # nothing of ours: it stays where it is
        raise CheckpointError(str(error)) from error
    except DamagedFileError as error:
        if not previous.exists():
            raise CheckpointError(
                f"{error}, and there is none before it: restore it from a copy, or move it away, and its stage starts again"
            ) from error
        saved = load_checkpoint(previous)
        warnings.warn(f"{error}: continuing from the checkpoint before it, {previous}", stacklevel=3)
        aside = path.with_name(path.name + ".damaged")
        try:
            os.replace(path, aside)
        except OSError as failed:
            why = failed.strerror or failed
            raise OSError(failed.errno, f"cannot write {aside}: {why}; nothing was changed there") from failed
        return saved


def drop_progress(path: Path) -> None:
    """Delete the progress of a training with all files beside it."""
    for file in (path, path.with_suffix(".json"), previous_of(path), path.with_name(path.name + ".damaged")):
        file.unlink(missing_ok=True)


def _read(path: Path) -> Checkpoint:
    tensors, header = read_tensors(path)
    if "spikeprop" not in header:
        raise CheckpointError(
            f"{path} holds tensors but was not written by spikeprop: its header has no 'spikeprop' entry; "
            f"{kinds.SAFETENSORS.remedy}"
        )
    if set(header) != {"spikeprop"}:  # the checksum's key itself is corrupted
        raise DamagedFileError(f"{path} is damaged (its header has an unknown entry)")
    try:
        description = parse_json(header["spikeprop"])
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged (its description is not JSON: {error})") from error
    if not isinstance(description, dict):
        raise DamagedFileError(f"{path} is damaged (its description is not a JSON object)")
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {description.get('format')}, this spikeprop reads {FORMAT}; use the version that wrote it"
        )
    aliases = description.get("aliases", {})
    if not isinstance(aliases, dict) or not all(
        isinstance(v, str) and v in tensors and k not in tensors for k, v in aliases.items()
    ):
        raise DamagedFileError(f"{path} is damaged (its aliases name tensors that it does not hold)")
    return Checkpoint(path, tensors | {name: tensors[held] for name, held in aliases.items()}, description)


def load_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into a model of the same architecture.

    Raises:
        CheckpointError: naming the tensors that are missing, unexpected or of another shape.
    """
    saved, own = checkpoint.section("model"), model.state_dict(keep_vars=True)
    problems = [f"missing {name}" for name in own if name not in saved]
    problems += [f"unexpected {name}" for name in saved if name not in own]
    problems += [
        f"{name} is {tuple(saved[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in own
        if name in saved and saved[name].shape != own[name].shape
    ]
    problems += [] if problems else _untied(own, checkpoint)
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"{checkpoint.path} is of another architecture: {shown}")
    model.load_state_dict({name: sharded_like(value, own[name]) for name, value in saved.items()})


def _untied(own: Mapping[str, Tensor], checkpoint: Checkpoint) -> list[str]:
    """Weights that are tied in the file or in the network, and have to be different in the other one."""
    tied = find_aliases({f"model.{name}": value for name, value in own.items()})
    saved = checkpoint.description.get("aliases", {})
    problems = [
        f"{name} and {held} are tied in the file, and not in the network"
        for name, held in saved.items()
        if name.startswith("model.") and tied.get(name, name) != tied.get(held, held)
    ]
    return problems + [
        f"{name} and {held} are tied in the network, and differ in the file"
        for name, held in tied.items()
        if not torch.equal(checkpoint.tensors[name], checkpoint.tensors[held])
    ]


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Restore an optimiser from the checkpoint of the same training run; how it computes (fused or not) stays as it is."""
    described = checkpoint.description["optimizer"]
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in described["values"].items()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in checkpoint.section("optimizer").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = sharded_like(tensor, held[int(index)])
    choices = [{name: group[name] for name in CHOICES if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": described["groups"]})
    for group, own in zip(optimizer.param_groups, choices):
        group.update(own)


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved = optimizer.state_dict()
    tensors, values = {}, {}
    for index, entries in saved["state"].items():
        values[str(index)] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
        tensors |= {f"optimizer.{index}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
    return tensors, {"groups": saved["param_groups"], "values": values}
