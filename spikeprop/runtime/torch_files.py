"""``read_torch``: what ``torch.save`` wrote, with nothing of it run and within the bounds of the file's own size.

torch's restricted reader builds tensors and plain values alone. What else lies beside weights (numpy's numbers, a configuration,
an enum) is read as an ``Inert`` object: the file's functions and classes are replaced by it, so none is imported or called.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from spikeprop_hardware import kinds

from spikeprop.errors import DamagedFileError, ForeignFileError
from spikeprop.runtime.files import check_kind

SLACK = 2**20  # bytes of names and alignment beside tensors
REFUSED = {"builtins", "importlib", "runpy", "subprocess"}  # no training leaves calls of these, so the file is not what it says
TYPES = {
    f"builtins.{name}"
    for name in ("bool", "dict", "float", "frozenset", "getattr", "int", "list", "object", "slice", "str", "tuple")
}


class Inert(dict[Any, Any]):
    """In place of an object of a file: it takes any arguments, items and state, and does nothing.

    Attributes:
        state: what the file stores of the object.
    """

    named = ""  # of the object's class or function

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_torch(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote; tensors are on the CPU.

    Raises:
        ForeignFileError: a program (TorchScript, torch.export), or a file of another kind.
        DamagedFileError: truncated, with more than tensors and plain values, or claiming more than it has bytes.
    """
    import torch

    check_kind(path, "a file of torch.save", kinds.TORCH)
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(_stand_ins(path)), open(path, "rb") as file:  # opened: its name says nothing
            return torch.load(file, map_location="cpu", weights_only=True)
    except ForeignFileError:
        raise
    except Exception as error:  # torch's reader raises many types for damaged files
        if "persistent_load of storage" in str(error):  # the old format stores the source of a pickled network's class
            raise DamagedFileError(pickled(path)) from error
        reason = re.sub(r"\s+", " ", str(error)).rpartition("WeightsUnpickler error: ")[2].split(" Please ")[0][:300]
        raise DamagedFileError(
            f"{path} is damaged, or contains more than tensors ({reason or type(error).__name__}); save tensors by name: "
            "torch.save(net.state_dict(), ...)"
        ) from error


def pickled(path: Path, place: str = "", named: str = "network") -> str:
    """What to do with an object in a file, where tensors are expected."""
    taken = "".join(f"[{part!r}]" for part in filter(None, place.split(".")))
    return (
        f"{path} contains more than tensors: a pickled {named}, as torch.save(net, ...) writes it, and reading it can run code. "
        "If you trust the file, save its tensors by these two lines, where its classes can be imported:\n"
        f"  net = torch.load({str(path)!r}, weights_only=False){taken}\n"
        f"  torch.save(net.state_dict(), {str(path.with_name(path.stem + '_weights.pt'))!r})"
    )


def _stand_ins(path: Path) -> list[Any]:
    """``Inert`` classes for all that the file names and torch does not know."""
    import torch

    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else _old_names(path)
    refused = [name for name in unknown if name.partition(".")[0] in REFUSED and name not in TYPES]
    if refused:
        raise ValueError(f"it calls {', '.join(refused)}")
    return [(_stand_in(name), name) for name in unknown]


def _old_names(path: Path) -> set[str]:
    """Functions and classes that a file of torch before 1.6 names: four pickles, and then the tensors' numbers."""
    with open(path, "rb") as file:
        found = [argument for _ in range(4) for code, argument, _ in pickletools.genops(file) if code.name == "GLOBAL"]
    return {str(name).replace(" ", ".") for name in found}


def _stand_in(name: str) -> Any:
    if name == "collections.defaultdict":
        return lambda *_: OrderedDict()  # torch's reader puts items into this class, and not into ours
    if name.endswith(("Dict", "dict")):
        return OrderedDict
    return type("Inert", (Inert,), {"named": name})


def _check_archive(path: Path) -> None:
    """Refuse programs, and archives that unpack to more than they have bytes; torch.save does not compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        names, size = file.namelist(), sum(entry.file_size for entry in file.infolist())
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise ForeignFileError(
            f"{path} is a TorchScript program, which cannot be converted; where it was made, save the tensors of the network "
            f"that was scripted: torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pt')"
        )
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        raise ForeignFileError(
            f"{path} is a program of torch.export: from Python `spikeprop.convert` takes torch.export.load({str(path)!r}); "
            "for a recipe save the network's tensors: torch.save(net.state_dict(), 'weights.pt')"
        )
    if size > path.stat().st_size + SLACK:
        raise ValueError(f"it says that it has {size:,} bytes, and {path.stat().st_size:,} are stored")
