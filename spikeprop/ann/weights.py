"""Weights as people save them: ``read_weights`` reads a file or folder; ``load_weights`` loads it into a network, and checks it.

A file has tensors by name in one or several tables: a state_dict itself, or one under a key (``state_dict``, ``model``, ``ema``,
with an optimiser beside it). Names may have what wrappers put before them (``module.`` of DataParallel, ``_orig_mod.`` of
torch.compile, ``model.`` of Lightning). A table fits where, behind one prefix, its names and shapes are exactly the network's.
``FILE#PART`` says which part of a file is meant where several fit, ``FILE#`` the names without a prefix.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spikeprop.ann.weight_files import tables_of
from spikeprop.errors import CheckpointError
from spikeprop.runtime.ordinary import unusual
from spikeprop.runtime.places import data_folder

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # parts of names, anywhere
HOLDERS = {*WRAPPERS, "model", "net", "network", "ema", "ema_model", "model_ema"}  # attributes that hold the network of a trainer
AVERAGED = re.compile(r"ema|averaged|swa|shadow", re.IGNORECASE)
SHOWN = 4  # names of tensors in a message


def find_weights(path: Path | str) -> Path:
    """The file or folder (``FILE#PART`` too), or that of this name in the folder ``weights`` of the data root."""
    path = Path(path)
    stored = data_folder() / "weights" / path
    return stored if not _split(path)[0].exists() and _split(stored)[0].exists() else path


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file or folder of weights by name, without prefixes that all names have.

    Args:
        path: safetensors, a file of torch.save, or a folder with one or with shards; ``FILE#PART`` for a part of it. Weights
            are read before their averages.

    Raises:
        CheckpointError: no such file, no tensors in it, or a network that was pickled as a whole; the message says what to do.
        DamagedFileError: truncated, altered, or of another kind.
    """
    file, part = _split(Path(path))
    tables = {place: table for place, table in tables_of(file).items() if _within(place, part)}
    if not tables:
        raise CheckpointError(f"{file} has no weights under {part!r}")
    place, table = max(tables.items(), key=lambda item: (not AVERAGED.search(item[0]), len(item[1])))
    others = [other for other, held in tables.items() if other != place and len(held) > 1 and not AVERAGED.search(other)]
    if others and not AVERAGED.search(place):
        raise CheckpointError(
            f"{file} has several tables of weights: write {_written(file, [place, *others])}, or use load_weights"
        )
    names = [_bare(name, WRAPPERS) for name in table]
    return dict(zip(names, table.values(), strict=True)) if len(set(names)) == len(names) else table


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Load a file or folder of weights into a network; every name and shape must match.

    Args:
        module: on any device; its parameters and buffers are overwritten.
        path: as for ``read_weights``.

    Raises:
        CheckpointError: as ``read_weights``; or tensors that do not fit, are quantised or not finite; the message names them.
        DamagedFileError: as ``read_weights``.
    """
    file, part = _split(Path(path))
    own = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    unsized = next((name for name, tensor in own.items() if is_lazy(tensor)), None)
    if unsized is not None:
        raise CheckpointError(f"{type(module).__name__} does not know the size of {unsized}: give its lazy layers their inputs")
    tables = tables_of(file)
    if len(tables) > 1 and "" not in tables:  # perhaps a table for each module: {"encoder": ..., "head": ...}
        tables[""] = {f"{place}.{name}": tensor for place, table in tables.items() for name, tensor in table.items()}
    compared = list(_matches(tables, own))
    chosen = _choose(file, part, compared, type(module).__name__)
    for name, tensor in chosen.tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path}: {name} has values that are not finite: its training diverged; take an earlier checkpoint"
            )
    try:
        module.load_state_dict(chosen.tensors, strict=False)  # what may be missing was decided above
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit {type(module).__name__}: {error}") from error


@dataclass(frozen=True)
class _Match:
    """A table of the file, behind one prefix, beside the network's own tensors."""

    place: str  # of the table in the file, and the prefix, "state_dict.model"
    tensors: dict[str, Tensor]  # by the network's names
    missing: list[str]
    unexpected: list[str]
    differing: list[str]
    open: bool  # the prefix is a wrapper's, or that of all names

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.differing)


def _matches(tables: Mapping[str, dict[str, Tensor]], own: Mapping[str, Tensor]) -> Iterator[_Match]:
    """Every table as it is and without the wrappers' parts, behind every prefix before one of the network's names."""
    wrappers = [part for part in WRAPPERS if not any(part in name.split(".") for name in own)]
    held = _common_prefix(own)
    for place, table in tables.items():
        bare = {_bare(name, wrappers): tensor for name, tensor in table.items()}
        for view in (table,) if len(bare) < len(table) or bare.keys() == table.keys() else (table, bare):
            for prefix in _prefixes(view, own):
                yield _compare(place, prefix, view, own, "")
            if held:
                yield _compare(place, "", view, own, held)
            alone = {name: tensor for name, tensor in view.items() if name in own or not _is_copy(name, own)}
            if 0 < len(alone) < len(view):  # both sets in one table
                yield _compare(place, "", alone, own, "")


def _is_copy(name: str, own: Mapping[str, Tensor]) -> bool:
    """Whether it is one of the network's names behind what holds a network."""
    parts = name.split(".")
    while parts and parts[0] in HOLDERS:
        parts = parts[1:]
    return ".".join(parts) in own


def _compare(place: str, prefix: str, view: dict[str, Tensor], own: Mapping[str, Tensor], held: str) -> _Match:
    found = {held + name.removeprefix(prefix): tensor for name, tensor in view.items() if name.startswith(prefix)}
    optional = {name for name in own if name.endswith("num_batches_tracked")}  # PyTorch before 0.4.1 had none
    differing = [
        f"{name} {_described(found[name])}, not {_described(own[name])}"
        for name in own
        if name in found and not _same(found[name], own[name])
    ]
    return _Match(
        place=".".join(filter(None, [place, prefix.rstrip(".")])),
        tensors={name: tensor for name, tensor in found.items() if name in own},
        missing=[f"{name} {tuple(own[name].shape)}" for name in own if name not in found and name not in optional],
        unexpected=[f"{name} {tuple(tensor.shape)}" for name, tensor in found.items() if name not in own],
        differing=differing,
        open=len(found) == len(view) or all(part in HOLDERS for part in prefix.rstrip(".").split(".")),
    )


def _choose(file: Path, part: str | None, compared: list[_Match], network: str) -> _Match:
    """The one that fits; of several, that which is no average of weights, with a warning."""
    wanted = [c for c in compared if not c.faults and (c.open if part is None else _meant(c.place, part))]
    distinct = {tuple(map(id, c.tensors.values())): c for c in reversed(wanted)}  # with and without the wrappers' parts
    fitting: dict[str, _Match] = {}
    for match in distinct.values():
        if not any(_equal(match, other) for other in fitting.values()):
            fitting[match.place] = match
    plain = [place for place in fitting if not AVERAGED.search(place)]
    if len(fitting) > 1 and len(plain) == 1 and part is None:
        others = ", ".join(f"{file.name}#{place}" for place in fitting if place not in plain)
        warnings.warn(f"{file} has several weights that fit; those {_under(plain[0])} are loaded; others: {others}", stacklevel=4)
        return fitting[plain[0]]
    if len(fitting) > 1:
        raise CheckpointError(f"{file} has several weights that fit {network}: write {_written(file, sorted(fitting))}")
    if fitting:
        return next(iter(fitting.values()))
    inside = [c for c in compared if _within(c.place, part)]
    if not inside:
        places = ", ".join(sorted({c.place for c in compared if c.place})[:SHOWN]) or "one table of tensors, without parts"
        raise CheckpointError(f"{file} has no weights under {part!r}; it has {places}")
    raise CheckpointError(_misfit(file, min(inside, key=lambda c: c.faults), network))


def _under(place: str) -> str:
    return f"under {place!r}" if place else "without a prefix"


def _equal(one: _Match, other: _Match) -> bool:
    """Whether two tables have the same values."""
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def _written(file: Path, places: list[str]) -> str:
    return " or ".join(f"{file.name}#{place}" for place in places[:SHOWN])


def _misfit(file: Path, nearest: _Match, network: str) -> str:
    lists = {
        "the file lacks": nearest.missing,
        f"{network} lacks": nearest.unexpected,
        "of another shape or type": nearest.differing,
    }
    said = [f"{what}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
            for what, names in lists.items() if names]  # fmt: skip
    if not said:
        return f"{file} has {network} as a part of a larger network; if you mean that part, write {file.name}#{nearest.place}"
    under = f" (compared with the part {nearest.place!r})" if nearest.place else ""
    remedy = "it is another network, or another version of it"
    if not nearest.missing and not nearest.unexpected:
        remedy = "give the network the arguments with which it was trained"
    if any("int8" in name for name in nearest.differing):
        remedy = "weights of a quantised network cannot be loaded: save those of the network before it was quantised"
    return f"{file} does not fit {network}{under}: {'; '.join(said)}; {remedy}"


def _prefixes(view: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What stands before one of three names of the network, and nothing."""
    asked = [*own]
    asked = [asked[0], asked[len(asked) // 2], asked[-1]] if asked else []
    return sorted({"", *(name[: -len(k)] for name in view for k in asked if name.endswith(f".{k}"))}, key=len)


def _same(found: Tensor, own: Tensor) -> bool:
    """Whether copying loses nothing but precision: copy_ would turn integers of a quantised network into floats."""
    return found.shape == own.shape and found.is_floating_point() == own.is_floating_point() and unusual(found) is None


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _bare(name: str, wrappers: Any) -> str:
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _common_prefix(own: Mapping[str, Tensor]) -> str:
    """The first part of the names with its point, if all have the same."""
    firsts = {name.partition(".")[0] for name in own if "." in name}
    return f"{firsts.pop()}." if len(firsts) == 1 and all("." in name for name in own) else ""


def _meant(place: str, part: str) -> bool:
    return _within(place, part) if part else not place


def _within(place: str, part: str | None) -> bool:
    return not part or place == part or place.startswith(f"{part}.")


def _split(path: Path) -> tuple[Path, str | None]:
    """The file and the part of ``FILE#PART``; None where none is written."""
    if "#" not in path.name or path.exists():
        return path, None
    name, _, part = path.name.partition("#")
    return path.with_name(name), part.rstrip(".")
