"""Sequences that are already arrays: ``SequenceData``, from tensors or a torch ``Dataset``; ``FrameData``, from ``.npz`` files.

An example is (T, ...), and a batch (B, T, ...), or ``Sequences`` where lengths differ. Values are given as float32, divided by
``scale``.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spikeprop.data.base import LabelledData, data_root, rows_of_batches
from spikeprop.errors import DataError, MissingDataError
from spikeprop.runtime.batches import Batch, Sequences
from spikeprop.runtime.checks import positive

LARGEST = 2**34  # bytes of an array in a file
RATIO = 1100  # of an array's bytes to those stored of it; deflate reaches 1032


@dataclass(frozen=True)
class SequenceSplit:
    """Sequences held in memory, in batches.

    Attributes:
        values: (N, T, ...), of any dtype.
        labels: (N,) int64.
        batch_size: examples in a batch.
        lengths: (N,) int64, each example's own steps; None if all have T.
        seed: of the order; None for the stored order.
        scale: values are divided by it.
    """

    values: Tensor
    labels: Tensor
    batch_size: int
    lengths: Tensor | None = None
    seed: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "batch_size")

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        for index in rows_of_batches(len(self.labels), self.batch_size, self.seed, epoch)[start:]:
            x = self.values[index].float() / self.scale
            if self.lengths is not None:
                lengths = self.lengths[index]
                own = torch.arange(int(lengths.max())) < lengths[:, None]
                x = x[:, : own.shape[1]] * own.view(*own.shape, *[1] * (x.dim() - 2))  # zeros after an example's end
                x = Sequences(x, lengths)
            yield x, self.labels[index]

    def fingerprint(self) -> str:
        """Hash of the values, lengths and labels, in order."""
        digest = hashlib.sha256(f"{tuple(self.values.shape)} {self.values.dtype} {self.scale}".encode())
        for tensor in (self.values, self.labels, *([] if self.lengths is None else [self.lengths])):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class DatasetSplit:
    """A torch ``Dataset`` of (sequence (T, ...), label) in batches, read an example at a time.

    A batch is ``Sequences`` if the lengths in it differ.
    """

    dataset: Any
    batch_size: int
    classes: int
    seed: int | None = None
    limit: int | None = None
    scale: float = 1.0

    @property
    def examples(self) -> int:
        """The number of examples."""
        return min(len(self.dataset), self.limit or len(self.dataset))

    def __post_init__(self) -> None:
        positive(self, "batch_size")

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        """One example (T, ...) float32 and its label.

        Raises:
            DataError: it is no such pair; the message names it.
        """
        found = self.dataset[number]
        if not (isinstance(found, tuple | list) and len(found) == 2):
            raise DataError(f"example {number} of the dataset is a {type(found).__name__}; give (sequence, label)")
        x, label = torch.as_tensor(found[0]), int(found[1])
        if x.dim() < 2 or not x.numel() or not 0 <= label < self.classes:
            raise DataError(
                f"example {number} of the dataset has shape {tuple(x.shape)} and label {label}; give a sequence (T, ...) of at "
                f"least one step, and a label from 0 to {self.classes - 1}"
            )
        return x.float() / self.scale, label

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        for index in rows_of_batches(self.examples, self.batch_size, self.seed, epoch)[start:]:
            read = [self[i] for i in index.tolist()]
            x = Sequences.of([x for x, _ in read])
            same = bool((x.lengths == x.shape[1]).all())
            yield x.values if same else x, torch.tensor([label for _, label in read])

    def fingerprint(self) -> str:
        """Hash of all examples and labels, in order; reads each of them."""
        digest = hashlib.sha256(str(self.scale).encode())
        for x, label in map(self.__getitem__, range(self.examples)):
            digest.update(f"{tuple(x.shape)} {label}".encode())
            digest.update(x.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceData(LabelledData):
    """Sequences that Python has already: arrays, or a torch ``Dataset`` of (sequence (T, ...), label).

    Attributes:
        training, testing: (values (N, T, ...), labels (N,)), or with lengths (N,) as a third; or a torch ``Dataset``,
            or a list of its examples.
        classes: number of classes.
        scale: values are divided by it.
    """

    training: Any
    testing: Any
    classes: int  # pyright: ignore[reportIncompatibleVariableOverride,reportGeneralTypeIssues]
    scale: float = 1.0
    in_time: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("training", "testing"):
            given = getattr(self, name)
            if isinstance(given, tuple):
                check_sequences(name, *_tensors(name, given), classes=self.classes)
            elif not (hasattr(given, "__getitem__") and hasattr(given, "__len__") and len(given)):
                raise DataError(f"{name} is a {type(given).__name__}; give (values, labels) or a torch Dataset with examples")

    @property
    def input_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of one step."""
        return tuple(self._first().shape[1:])

    @property
    def timesteps(self) -> int | None:
        """The number of steps of every example, if both splits say so."""
        lengths = {len(given[0][0]) for given in (self.training, self.testing) if _fixed(given)}
        return lengths.pop() if len(lengths) == 1 and _fixed(self.training) and _fixed(self.testing) else None

    def _first(self) -> Tensor:
        given = self.training
        return torch.as_tensor(given[0][0])

    def example(self, size: int) -> Tensor | Sequences:
        """Zeros (size, T, *input_shape); of the first example's length if lengths differ."""
        x = torch.zeros(size, *self._first().shape)
        return x if self.timesteps else Sequences(x, torch.full((size,), x.shape[1]))

    def train(self, batch_size: int, seed: int) -> SequenceSplit | DatasetSplit:
        return self._split("training", batch_size, seed, self.train_limit)

    def test(self, batch_size: int) -> SequenceSplit | DatasetSplit:
        return self._split("testing", batch_size, None, self.test_limit)

    def _split(self, name: str, batch_size: int, seed: int | None, limit: int | None) -> SequenceSplit | DatasetSplit:
        given = getattr(self, name)
        if not isinstance(given, tuple):
            return DatasetSplit(given, batch_size, self.classes, seed, limit, self.scale)
        values, labels, lengths = (None if t is None else t[:limit] for t in _tensors(name, given))
        assert values is not None
        assert labels is not None
        return SequenceSplit(values, labels, batch_size, lengths, seed, self.scale)


@dataclass(frozen=True, kw_only=True)
class FrameData(LabelledData):
    """Frames in ``.npz`` files: ``x`` (N, T, *frame_shape), ``y`` (N,), and ``lengths`` (N,) where examples end earlier than T.

    Attributes:
        root: folder of the files; default ``$SPIKEPROP_DATA``.
        train_file, test_file: names of the files in it.
        frame_shape: of one frame, such as [2, 34, 34].
        classes: number of classes.
        timesteps: T; None if the files have lengths.
        scale: values are divided by it, for example 255 for bytes of images.
    """

    root: str | None = None
    train_file: str = "train.npz"
    test_file: str = "test.npz"
    frame_shape: list[int]
    classes: int  # pyright: ignore[reportIncompatibleVariableOverride,reportGeneralTypeIssues]
    timesteps: int | None = None
    scale: float = 1.0
    in_time: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "classes", "scale")
        if not self.frame_shape or min(self.frame_shape) < 1 or (self.timesteps is not None and self.timesteps < 1):
            raise ValueError(f"frame_shape is {self.frame_shape} and timesteps is {self.timesteps}; sizes are at least 1")

    @property
    def input_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(self.frame_shape)

    def example(self, size: int) -> Tensor | Sequences:
        """Zeros (size, T, *frame_shape); of 2 steps if lengths differ."""
        x = torch.zeros(size, self.timesteps or 2, *self.frame_shape)
        return x if self.timesteps else Sequences(x, torch.full((size,), 2))

    def train(self, batch_size: int, seed: int) -> SequenceSplit:
        return self._split(self.train_file, batch_size, seed, self.train_limit)

    def test(self, batch_size: int) -> SequenceSplit:
        return self._split(self.test_file, batch_size, None, self.test_limit)

    def _split(self, name: str, batch_size: int, seed: int | None, limit: int | None) -> SequenceSplit:
        path = data_root(self.root) / name
        try:
            arrays = read_npz(path, ("x", "y", "lengths") if self.timesteps is None else ("x", "y"))
            values, labels, lengths = check_sequences(str(path), *_tensors(str(path), arrays), classes=self.classes)
            if tuple(values.shape[2:]) != self.input_shape or self.timesteps not in (None, values.shape[1]):
                steps = self.timesteps or "T"
                raise DataError(f"x has shape {tuple(values.shape)}, not (N, {steps}, {', '.join(map(str, self.frame_shape))})")
        except DataError as error:
            raise MissingDataError(f"{path}: {error}; write it again, or set data.frame_shape, timesteps or classes") from error
        lengths = None if lengths is None else lengths[:limit]
        return SequenceSplit(values[:limit], labels[:limit], batch_size, lengths, seed, self.scale)


def _fixed(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2


def _tensors(name: str, given: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values, labels and lengths or None, as tensors."""
    if len(given) not in (2, 3):
        raise DataError(f"{name} has {len(given)} parts; give (values, labels) or (values, labels, lengths)")
    values, *rest = (torch.as_tensor(part) for part in given)
    if any(part.is_floating_point() or part.is_complex() or part.dtype == torch.bool for part in rest):
        raise DataError(f"{name}: labels and lengths are {', '.join(str(part.dtype) for part in rest)}; give integers")
    labels, *lengths = (part.long() for part in rest)
    return values, labels, lengths[0] if lengths else None


def check_sequences(
    name: str, values: Tensor, labels: Tensor, lengths: Tensor | None, *, classes: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same tensors if they are sequences with labels.

    Raises:
        DataError: shapes that do not fit, no examples or steps, labels or lengths out of range, or values that are not finite.
    """
    if values.dim() < 3 or not values.numel() or labels.shape != values.shape[:1]:
        raise DataError(
            f"{name} has values {tuple(values.shape)} and labels {tuple(labels.shape)}; give at least one sequence, (N, T, ...) "
            "with T of at least 1, and labels (N,)"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"{name} has labels from {int(labels.min())} to {int(labels.max())}; they are 0 to {classes - 1}")
    steps = values.shape[1]
    if lengths is not None and (lengths.shape != labels.shape or int(lengths.min()) < 1 or int(lengths.max()) > steps):
        raise DataError(f"{name} has lengths {tuple(lengths.shape)}, not one of 1 to {steps} for each sequence")
    if values.is_complex() or (values.is_floating_point() and not bool(values.isfinite().all())):
        raise DataError(f"{name} has values that are complex or not finite")
    return values, labels, lengths


def read_npz(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of numbers from a ``.npz`` file, without running anything that it contains.

    Raises:
        MissingDataError: no such file or array, truncated or damaged, or one that says it has far more than is stored.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return [_member(file, name) for name in names]
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no file {path}; set data.root, data.train_file or data.test_file") from error
    except Exception as error:  # zip's and numpy's readers raise many types for damaged files
        raise MissingDataError(f"{path} is truncated, damaged or not an .npz file ({error}); write it again") from error


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in a ``.npz`` file.

    Raises:
        MissingDataError: truncated, damaged or of another kind.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise MissingDataError(f"{path} is truncated, damaged or not an .npz file ({error}); write it again") from error


def _member(file: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        info = file.getinfo(f"{name}.npy")
    except KeyError as error:
        raise ValueError(f"it has no array {name!r}; it has {', '.join(file.namelist())[:200]}") from error
    if info.file_size > min(LARGEST, 2**16 + RATIO * info.compress_size):
        raise ValueError(f"{name} says that it has {info.file_size:,} bytes, and {info.compress_size:,} are stored")
    with file.open(info) as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(member)
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise ValueError(f"{name} holds {dtype}, not numbers")
        size = math.prod(shape) * dtype.itemsize
        if size > info.file_size:
            raise ValueError(f"{name} says that it has {size:,} bytes, in a file of {info.file_size:,}")
        content = member.read(size)
    if len(content) < size:
        raise ValueError(f"{name} ends after {len(content):,} of {size:,} bytes")
    array = np.frombuffer(bytearray(content), dtype=dtype).reshape(shape, order="F" if fortran else "C")
    array = array.astype(dtype.newbyteorder("="), order="C", copy=False)
    return array.astype(np.int64) if dtype.kind == "u" and dtype.itemsize > 1 else array  # torch computes with few of these
