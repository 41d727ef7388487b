"""Files that are complete or absent: written to a temporary name beside the target, flushed, then renamed; and read with bounds.

Files of tensors (safetensors) contain a SHA-256 of all their other content, which is compared when they are read: a flipped bit
is noticed wherever it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeprop_hardware import kinds

from spikeprop.errors import DamagedFileError, ForeignFileError

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "sha256"  # the checksum's key in a safetensors header
LARGEST_JSON = 256 * 2**20  # bytes; our longest report has a few MiB
LARGEST_HEADER = 64 * 2**20  # bytes of a safetensors header; about a million tensors
TEMPORARY = re.compile(r"\..*\.(\d+)\.part(\.\w+)?")  # a temporary name: process number and the target's suffix


def write_atomically(path: Path, write: Callable[[Path], None], *, keep_previous: bool = False) -> None:
    """Call ``write`` with a temporary path and rename the result to ``path``; after an error no temporary file remains.

    The file has the permissions that the umask gives, whatever ``write`` does.

    Args:
        path: the file.
        write: writes the file under the path that it is given.
        keep_previous: keep the existing file as ``previous_of(path)``.

    Raises:
        OSError: the message names the file and says where the existing one is: unchanged, unless the disk fails twice.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # with the permissions that the umask gives
        mode = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # libraries that use mkstemp make files that only their owner can read
            temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        _put_in_place(temporary, path, keep_previous and path.exists())
        _flush_folder(path.parent)
    except OSError as error:
        moved = keep_previous and previous_of(path).exists() and not path.exists()
        left = f"the existing file is now {previous_of(path)}" if moved else "nothing was changed there"
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}; {left}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_in_place(temporary: Path, path: Path, keep: bool) -> None:
    if keep:
        os.replace(path, previous_of(path))
    try:
        os.replace(temporary, path)
    except OSError:
        if keep:
            with contextlib.suppress(OSError):  # the first error is the one to report
                os.replace(previous_of(path), path)
        raise


def previous_of(path: Path) -> Path:
    """Where ``write_atomically`` keeps the previous file."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of processes on this machine that were killed while writing."""
    for file in folder.glob(".*.part*"):
        found = TEMPORARY.fullmatch(file.name)
        if found and not process_exists(int(found[1])):
            shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)


def process_exists(process: int) -> bool:
    """Whether this machine has a process with that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Flush the folder, so that the renaming too survives a power failure; not all file systems support it."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_text(path: Path, text: str, *, keep_previous: bool = False) -> None:
    """Write a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write, keep_previous=keep_previous)


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; a full disk can truncate the line, which readers must tolerate."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any, *, keep_previous: bool = False) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2) + "\n", keep_previous=keep_previous)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ForeignFileError: it is a file of another kind.
        DamagedFileError: it is too large, or not JSON.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise DamagedFileError(f"{path} has {size:,} bytes; our JSON files have at most {LARGEST_JSON:,}")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        check_kind(path, "a JSON file", kinds.JSON, kinds.TEXT, kinds.YAML, kinds.EMPTY)
        raise DamagedFileError(f"{path} is damaged, or not JSON ({error}); restore it from a copy") from error


def check_kind(path: Path, expected: str, *right: kinds.Kind) -> None:
    """Refuse a file that is recognised as something else than the kinds that are ``right``, which ``expected`` names.

    Raises:
        ForeignFileError: saying what it is, and what to do with it.
    """
    wrong = kinds.wrong_kind(path, expected, *right)
    if wrong is not None:
        raise ForeignFileError(wrong)


def parse_json(text: str) -> Any:
    """JSON from text.

    Raises:
        ValueError: it is not JSON, or nested too deeply for Python's parser.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None, *, keep_previous: bool = False
) -> None:
    """Write a safetensors file atomically, with its checksum.

    The safetensors library reports a full disk with its own error type; here it becomes an OSError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    described = {**(header or {}), CHECKSUM: _checksum(tensors, header or {})}

    def write(temporary: Path) -> None:
        own = temporary.with_suffix("")  # a folder: safetensors writes another temporary file beside its target
        own.mkdir(exist_ok=True)
        try:
            save_file(_apart(tensors), own / "tensors", metadata=described)
            os.replace(own / "tensors", temporary)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code) if number else str(error)) from error
        finally:
            shutil.rmtree(own, ignore_errors=True)

    write_atomically(path, write, keep_previous=keep_previous)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without common memory, which safetensors refuses; those that share another one's are copied."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() > tensor.numel() * tensor.element_size()
        seen.add(storage.data_ptr())
        found[name] = tensor.detach().contiguous().clone() if shared and tensor.numel() else tensor
    return found


def read_tensors(path: Path, entries: Collection[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file; its tensors and the entries of its header.

    Args:
        path: the file.
        entries: keys that the header of one of our files may have; None for a file from elsewhere. A flipped bit in the key of
            the checksum is found by this.

    Raises:
        ForeignFileError: it is a file of another kind.
        DamagedFileError: it is truncated, or its checksum differs.
    """
    from safetensors import safe_open

    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors has its own error type, and torch has several for impossible tensors
        check_kind(path, "a safetensors file", kinds.SAFETENSORS, kinds.CHECKPOINT, kinds.TEXT, kinds.EMPTY)
        raise DamagedFileError(f"{path} is damaged or not a safetensors file ({error})") from error
    found = header.pop(CHECKSUM, None)
    if found is not None and found != _checksum(tensors, header):
        raise DamagedFileError(f"{path} is damaged (its checksum differs from that of its contents)")
    if entries is not None and not set(header) <= set(entries):
        raise DamagedFileError(
            f"{path} is damaged or not written by spikeprop (its header has {', '.join(sorted(set(header) - set(entries)))!r})"
        )
    return tensors, header


def _check_header(path: Path) -> None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(LARGEST_HEADER, path.stat().st_size):
        raise ValueError(f"a header of {length:,} bytes")


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, and of the header's other entries."""
    import torch

    digest = hashlib.sha256(json.dumps(dict(sorted(header.items()))).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))  # one number may have any stride
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_writable(folder: Path) -> None:
    """Find out, before any work, whether a folder can be written, or made; nothing is left there.

    Raises:
        OSError: it cannot; the message names the folder.
    """
    place = folder
    while not place.exists() and not place.is_symlink() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".spikeprop-", dir=place):
            pass
    except OSError as error:
        broken = place.is_symlink() and not place.exists()
        why = f"{place} is a broken link" if broken else f"{place} is a file" if place.is_file() else error.strerror
        raise OSError(error.errno, f"cannot write the folder {folder}: {why}; use another --out folder") from error


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The values of nested JSON objects by dotted key."""
    if isinstance(tree, dict):
        return {k: v for key, below in tree.items() for k, v in leaves(below, f"{path}.{key}" if path else str(key)).items()}
    return {path: tree}
