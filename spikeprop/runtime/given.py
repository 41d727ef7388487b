"""What people pass as data, read in one place: ``read_batches`` understands it, or says in words what to pass instead.

    a tensor or NumPy array (B, ...)          one batch
    a pair (examples, labels)                 one batch; labels may be a list of numbers
    a list, generator or DataLoader           of batches; a batch is a tensor, a pair, or a dictionary with one known key
    Sequences, or a pair with them            one batch of sequences (B, T, ...) of unequal length
    a torch Dataset                           its examples, in order
    a Split, or Batches                       its first epoch
    a data set of spikeprop                   its training or its test split

A list of single examples is refused unless each has a label of its own, since axis 0 of an example is no batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from spikeprop.errors import DataError
from spikeprop.runtime.batches import Batches, Sequences
from spikeprop.runtime.ordinary import unusual

EXAMPLES = ("image", "images", "img", "x", "pixel_values", "input", "inputs", "data")
LABELS = ("label", "labels", "y", "target", "targets")
SIZE = 256  # examples in a batch of a data set
GivenBatch = tuple[Any, Tensor | None]  # examples are a tensor or Sequences
FORMS = "pass a tensor (B, ...), a list of batches, (examples, labels), a DataLoader, a data set or a split"


def read_batches(given: Any, *, split: Literal["train", "test"] = "train", integers: bool = False) -> Iterator[GivenBatch]:
    """Examples (B, ...) and their labels, None where there are none, a batch at a time.

    Args:
        given: see the module.
        split: of a data set of spikeprop.
        integers: examples may be integers (int32, int64), such as tokens.

    Raises:
        DataError: it is none of these, is ambiguous, or has a type that networks do not read.
    """
    for number, (x, y) in enumerate(_batches(given, split)):
        _check(x, f"batch {number}", integers)
        yield x, y


def count_batches(given: Any, split: Literal["train", "test"] = "train") -> int:
    """Number of batches, for a progress bar; 0 if it is not known."""
    if isinstance(given, Tensor | np.ndarray | Sequences) or _is_pair(given):
        return 1
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        return -(-len(given) // SIZE)  # type: ignore[arg-type]
    if not isinstance(given, Batches) and _is_data(given):
        given = _split(given, split)
    return length_hint(given) if hasattr(given, "__len__") or isinstance(given, Iterator) else 0


def _batches(given: Any, split: str) -> Iterator[GivenBatch]:
    if isinstance(given, type):
        raise DataError(f"the data are the class {given.__name__}; pass an instance, {given.__name__}(...)")
    if isinstance(given, Batches):
        yield from ((_tensor(x, "the split"), y) for x, y in given.epoch(0))
    elif _is_data(given):
        yield from _split(given, split).epoch(0)
    elif isinstance(given, Dataset):
        yield from _of_loader(DataLoader(given, SIZE), type(given).__name__)
    elif isinstance(given, DataLoader):
        yield from _of_loader(given, "the DataLoader")
    elif isinstance(given, Tensor | np.ndarray | Mapping | Sequences) or _is_pair(given):
        given = _tensor(given, "the data") if isinstance(given, Tensor | np.ndarray) else given
        if isinstance(given, Tensor) and given.dim() == 3 and given.shape[0] in (1, 3):
            raise DataError(
                f"a tensor of shape {tuple(given.shape)}: is it one image (C, H, W), or a batch of {given.shape[0]}? Pass "
                "x[None] for one image, and [x] for a batch"
            )
        yield _batch(given, "the data")
    elif isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(f"the data are {'text' if isinstance(given, str | bytes) else f'a {type(given).__name__}'}; {FORMS}")
    else:
        given = list(given) if isinstance(given, list | tuple) else given
        if isinstance(given, list):
            _check_list(given)
        yield from (_batch(item, f"batch {number}") for number, item in enumerate(given))


def _is_data(given: Any) -> bool:
    """Whether it is a data set of spikeprop (``data`` is a room above this one)."""
    return all(callable(getattr(given, name, None)) for name in ("train", "test", "example"))


def _split(given: Any, split: str) -> Batches:
    return given.train(SIZE, 0) if split == "train" else given.test(SIZE)


def _of_loader(loader: Iterable[Any], what: str) -> Iterator[GivenBatch]:
    batches = iter(loader)
    number = 0
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except TypeError as error:
            if "default_collate" not in str(error) and "batch must contain" not in str(error):
                raise
            raise DataError(
                f"{what} gives examples that are no tensors ({str(error).splitlines()[0]}); "
                "give the data set a transform, such as torchvision.transforms.ToTensor()"
            ) from error
        yield _batch(item, f"batch {number}")
        number += 1


def _batch(item: Any, what: str) -> GivenBatch:
    """One batch: a tensor, a pair, or a dictionary."""
    if isinstance(item, Mapping):
        x, y = _one_of(item, EXAMPLES, what, "examples"), None
        if any(name in item for name in LABELS):
            y = _one_of(item, LABELS, what, "labels")
    elif isinstance(item, tuple | list):
        if not item:
            raise DataError(f"{what} is empty; {FORMS}")
        x, y = item[0], item[1] if len(item) > 1 else None
    else:
        x, y = item, None
    x = _tensor(x, what)
    if y is not None:
        y = _tensor(y, f"the tensor of labels of {what}")
        x, y = (x.unsqueeze(0), y.unsqueeze(0)) if y.dim() == 0 else (x, y)
    return x, y


def _one_of(item: Mapping[Any, Any], names: tuple[str, ...], what: str, role: str) -> Any:
    found = [name for name in names if name in item]
    if len(found) != 1:
        told = f"has {' and '.join(map(repr, found))}" if found else f"has the keys {', '.join(map(repr, item))}"
        raise DataError(f"{what} {told}, and it is not clear which of them are the {role}; pass (batch[EXAMPLES], batch[LABELS])")
    return item[found[0]]


def _tensor(value: Any, what: str) -> Any:
    if isinstance(value, Sequences):
        _tensor(value.values, what)
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise DataError(f"{what} is a NumPy array of {value.dtype}; numbers are needed")
        long = value.dtype.kind == "f" and value.dtype.itemsize > 8  # torch has no such type, nor foreign byte orders
        return torch.from_numpy(np.array(value, np.float64 if long else value.dtype.newbyteorder("="), order="C", copy=None))
    if not isinstance(value, Tensor) and _are_numbers(value):
        try:
            return torch.tensor(value if not isinstance(value, range) else [*value])
        except (ValueError, RuntimeError) as error:
            raise DataError(f"{what} cannot become a tensor: {error}") from error
    if not isinstance(value, Tensor):
        of = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
        raise DataError(f"{what} is a {type(value).__name__}{of} where a tensor or numbers belong; {FORMS}")
    found = unusual(value)
    if found is not None:
        raise DataError(f"{what} {found}")
    return value


def _are_numbers(value: Any) -> bool:
    """A number, a tensor without axes, or nested lists of them."""
    if isinstance(value, list | tuple | range):
        return len(value) > 0 and all(map(_are_numbers, value))
    return isinstance(value, bool | int | float | np.generic) or (isinstance(value, Tensor) and value.dim() == 0)


def _check(x: Any, what: str, integers: bool) -> None:
    x = x.values if isinstance(x, Sequences) else x
    if x.dim() < 2 and not integers:
        raise DataError(f"{what} has the shape {tuple(x.shape)}, which is no batch (B, ...) of examples; {FORMS}")
    if not x.is_floating_point() and not (integers and x.dtype in (torch.int32, torch.int64)):
        raise DataError(
            f"{what} is {x.dtype}; convert the images to floating-point numbers and normalise them as in training, for example "
            "(x.float() / 255 - mean) / std"
        )


def _is_pair(given: Any) -> bool:
    """Whether a tuple or list of two is one batch with its labels, and not two batches.

    Raises:
        DataError: it may be both.
    """
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[0], Tensor | np.ndarray | Sequences):
        return False
    labels = Tensor | np.ndarray | np.generic | list | tuple | range | int | float
    if not isinstance(given[1], labels) or _holds_tensors(given[1]):
        return False
    if isinstance(given[0], Sequences):
        return True
    x, y = _tensor(given[0], "the data"), _tensor(given[1], "the tensor of labels")
    if y.dim() < min(x.dim(), 2) and (y.dim() == 0 or len(x) != len(y)):
        raise DataError(f"{len(x)} examples and {y.numel()} labels: give one label for each example")
    if y.dim() < x.dim() or not y.is_floating_point():
        return len(x) == len(y) and x.dim() > 1
    if isinstance(given, tuple) and x.shape == y.shape:
        raise DataError(
            f"two tensors of shape {tuple(x.shape)} may be two batches, or examples and labels; pass [a, b] for batches, and "
            "[(a, b)] for examples and labels"
        )
    return False


def _holds_tensors(value: Any) -> bool:
    """Whether a list is no list of numbers, but a batch of its own."""
    return isinstance(value, list | tuple) and any(isinstance(v, Tensor | np.ndarray) and v.ndim > 0 for v in value)


def _check_list(given: list[Any]) -> None:
    """Refuse a list of single images (C, H, W), whose channels would be taken for a batch of images (H, W)."""
    shapes = {tuple(_tensor(item, "the list").shape) for item in given if isinstance(item, Tensor | np.ndarray)}
    single = len(shapes) == 1 and len(given) > 1 and all(isinstance(item, Tensor | np.ndarray) for item in given)
    (shape, *_) = shapes or [()]
    if single and len(shape) == 3 and shape[0] in (1, 3):
        raise DataError(
            f"the list holds {len(given)} tensors of shape {shape}: are these single images (C, H, W), or batches of {shape[0]}? "
            "Pass torch.stack(images) for single images, and torch.cat(batches) for batches"
        )
