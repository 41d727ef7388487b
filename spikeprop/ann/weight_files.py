"""``tables_of``: all tables of tensors in a file or folder of weights: safetensors, torch.save, Hugging Face's shards.

A table is a dictionary from names to tensors; its place in the file is the keys that lead to it ("state_dict"). Files are
untrusted: sizes are bounded, and nothing in them is run (``runtime/torch_files.py``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spikeprop_hardware import kinds
from torch import Tensor

from spikeprop.errors import CheckpointError, DamagedFileError, ForeignFileError
from spikeprop.runtime.files import check_kind, read_json, read_tensors
from spikeprop.runtime.places import data_folder, nearest_path
from spikeprop.runtime.torch_files import Inert, pickled, read_torch

ASIDE = re.compile(r"(\w+_)?(optim\w*|opt|(lr_)?sched\w*|scaler|rng|callbacks|loops)(_states?|_state_dict)?")  # no weights there
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # of files in a folder, the preferred first
MOST = 1_000_000  # tensors and tables of one file, each as often as it is repeated
SHOWN = 4  # names in a message


def check_there(path: Path) -> None:
    """Raises CheckpointError if there is no such file or folder."""
    if not path.exists():
        raise CheckpointError(
            f"no weights file at {path}; give its path, or put it into the folder {data_folder() / 'weights'}{nearest_path(path)}"
        )


def tables_of(path: Path) -> dict[str, dict[str, Tensor]]:
    """All tables of tensors in a file or folder, by their place in it.

    Raises:
        CheckpointError: no such file, no tensors in it, a network that was pickled, or shards that are missing.
        DamagedFileError: truncated, altered, or of another kind.
    """
    check_there(path)
    if path.is_dir():
        return {"": _folder(path)}
    shard = SHARD.fullmatch(path.name)
    if shard:
        return {"": _joined(path.parent, _siblings(shard))}
    return _file(path)


def _file(path: Path) -> dict[str, dict[str, Tensor]]:
    kind = kinds.kind_of(path)
    if kind is kinds.CHECKPOINT:
        raise CheckpointError(f"{path} is a checkpoint of spikeprop, whose tensors have other names: use load_network or `eval`")
    if kind is kinds.SAFETENSORS or (path.suffix == ".safetensors" and kind is None):
        return {"": read_tensors(path)[0]}
    check_kind(path, "a file of weights (safetensors, or torch.save of a state_dict)", kinds.TORCH)
    try:
        content = read_torch(path)
    except ForeignFileError:
        raise
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    tables: dict[str, dict[str, Tensor]] = {}
    inert: list[tuple[str, str]] = []
    _collect(content, "", tables, inert, [0])
    claimed = sum(t.numel() * t.element_size() for table in tables.values() for t in table.values())
    if claimed > 4 * path.stat().st_size + 2**20:  # views that repeat a few numbers
        raise DamagedFileError(f"{path} has tensors of {claimed:,} bytes, and {path.stat().st_size:,} are stored; save it again")
    if not tables:
        raise CheckpointError(_no_tables(path, inert))
    return tables


def _largest(path: Path) -> dict[str, Tensor]:
    return max(_file(path).values(), key=len)


def _collect(node: Any, place: str, tables: dict[str, dict[str, Tensor]], inert: list[tuple[str, str]], count: list[int]) -> None:
    """The tables below a value of the file, and the names of the objects that were not read."""
    count[0] += 1
    if count[0] > MOST or place.count(".") > 8:
        raise DamagedFileError(f"more than {MOST:,} tensors, or tables nested in tables, at {place[:80]!r}")
    if isinstance(node, Inert):
        inert.append((place, node.named))
    if not isinstance(node, dict):
        return
    entries = {name: value for name, value in node.items() if isinstance(name, str)}
    own = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if own:
        tables[place] = own
        count[0] += len(own)
    for name, value in entries.items():
        if isinstance(value, dict) and not ASIDE.fullmatch(name):
            _collect(value, f"{place}.{name}" if place else name, tables, inert, count)


def _no_tables(path: Path, inert: list[tuple[str, str]]) -> str:
    return pickled(path, *inert[0]) if inert else f"{path} does not contain tensors by name; save the model's state_dict()"


def _folder(path: Path) -> dict[str, Tensor]:
    """The tensors of a folder as Hugging Face lays it out: an index of shards, shards, or one file."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    if any(file.suffix == ".distcp" for file in files):
        raise CheckpointError(
            f"{path} is a distributed checkpoint; make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt"
        )
    for suffix in SUFFIXES:
        for index in files:
            if index.name.endswith(f"{suffix}.index.json"):
                return _indexed(path, index)
        found = [file for file in files if file.suffix == suffix]
        shards = [shard for shard in map(SHARD.fullmatch, (file.name for file in found)) if shard]
        if shards:
            return _joined(path, _siblings(shards[0]))
        if len(found) == 1:
            return _largest(found[0])
        if found:
            raise CheckpointError(
                f"{path} has several files of weights; name one: {', '.join(file.name for file in found[:SHOWN])}"
            )
    raise CheckpointError(f"{path} has no file of weights ({', '.join(f'*{suffix}' for suffix in SUFFIXES)})")


def _indexed(folder: Path, index: Path) -> dict[str, Tensor]:
    content = read_json(index)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not (isinstance(where, dict) and where and all(isinstance(file, str) for file in where.values())):
        raise CheckpointError(f"{index} has no weight_map from tensors to files; get it again")
    outside = [file for file in where.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is not a file beside it")
    found = _joined(folder, sorted(set(where.values())))
    lost = [name for name in where if name not in found]
    if lost:
        raise CheckpointError(
            f"{index} names {len(lost)} tensors that its shards lack ({', '.join(lost[:SHOWN])}); get them again"
        )
    return found


def _joined(folder: Path, names: list[str]) -> dict[str, Tensor]:
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(f"{folder} lacks {len(absent)} of {len(names)} shards: {', '.join(absent[:SHOWN])}; get them too")
    joined: dict[str, Tensor] = {}
    for name in names:
        table = _largest(folder / name)
        twice = [tensor for tensor in table if tensor in joined]
        if twice:
            raise CheckpointError(f"{folder / name} has {twice[0]} once more, which another shard has; get the shards again")
        joined |= table
    return joined


def _siblings(shard: re.Match[str]) -> list[str]:
    stem, number, count, suffix = shard.groups()
    if int(count) > 10_000:
        raise CheckpointError(f"{shard[0]} says that it is one of {int(count):,} shards; at most 10,000 are read")
    return [f"{stem}-{i:0{len(number)}d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
