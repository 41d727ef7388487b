"""``OwnDataset``: any torch ``Dataset`` or ``DataLoader`` of images in a recipe: ``data: {use: "my_data.py:MyDataset"}``.

``use`` names a class, a function that returns a Dataset or DataLoader, or such an object. Its training and test examples are told
apart by its parameter ``train`` (true, false) or ``split`` ("train", "test"), by ``train_arguments`` and ``test_arguments``, by
``test_from`` (another name in the same module), or by ``holdout``. Order and batches are the recipe's; of a DataLoader the
dataset is used. Examples are (image, label), or a dictionary of both; images (C, H, W) as tensors, arrays or Pillow's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from spikeprop.data.base import ImageData, LabelledData, as_list, augment, data_root, rows_of_batches
from spikeprop.errors import DataError, MissingDataError, RecipeError
from spikeprop.recipe.component import hints_of
from spikeprop.runtime.batches import Batch
from spikeprop.runtime.checks import positive
from spikeprop.runtime.seeding import mix_seed, seed_everything

SPLITS = {"train": (True, False), "split": ("train", "test")}  # parameters that say which examples, and their values
PAIRS = (("image", "label"), ("pixel_values", "labels"), ("img", "target"), ("x", "y"), ("image", "target"))  # keys of examples
NOT_GIVEN = object()  # default of a parameter that may also stand in ``arguments``
HASHED = 64  # examples whose content a fingerprint reads


@dataclass(frozen=True, kw_only=True)
class OwnDataset(ImageData):
    """Images of a Dataset or DataLoader of one's own.

    Attributes:
        arguments: of the class or function, for both splits; its parameters may also be written beside ``use``.
        train_arguments, test_arguments: for one of them.
        test_from: name, in the same module, of what gives the test examples.
        holdout: every so many-th example is a test example, where there is one set for both.
        class_count: number of classes; default that of the dataset's ``classes``, or of its ``targets``.
        names: of the classes; default the dataset's ``classes``.
        workers: processes that read examples.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    train_arguments: dict[str, Any] | None = None
    test_arguments: dict[str, Any] | None = None
    test_from: str | None = None
    holdout: int | None = None
    class_count: int | None = None
    names: list[str] = field(default_factory=list)  # pyright: ignore[reportIncompatibleVariableOverride]
    workers: int = 0
    source: ClassVar[Any] = None  # the class, function or object, see ``adapt``
    module: ClassVar[Any] = None  # in which it was found

    def __post_init__(self) -> None:
        if self.source is None:
            raise ValueError("OwnDataset is used by the name of your class: data: {use: 'my_data.py:MyDataset'}")
        if self.holdout is not None and self.holdout < 2:
            raise ValueError(f"holdout is {self.holdout}; every so many-th example is a test example: at least 2")
        self.random_flip()
        super().__post_init__()

    @property
    def classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.class_names())

    def class_names(self) -> list[str]:
        return self._class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._first[0]

    @property
    def label_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._first[1]

    def found(self) -> dict[str, Any]:
        return {"names": self.class_names()}

    def train(self, batch_size: int, seed: int) -> OwnSplit:
        return self._split(0, batch_size, seed, self.train_limit)

    def test(self, batch_size: int) -> OwnSplit:
        return self._split(1, batch_size, None, self.test_limit)

    def _split(self, which: int, batch_size: int, seed: int | None, limit: int | None) -> OwnSplit:
        dataset, rows = self._sets[which]
        return OwnSplit(dataset, rows[:limit], batch_size, self.mean, self.std, seed, self.workers, self.crop, self.random_flip())

    @cached_property
    def _sets(self) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
        """Datasets of training and testing, and the numbers of their examples."""
        given = (self.train_arguments, self.test_arguments)
        if self.test_from is not None:
            other = None if self.test_from.startswith("_") else getattr(self.module, self.test_from, None)
            if other is None:
                raise RecipeError(f"data.test_from: there is no {self.test_from!r} in {self.module.__name__}")
            train, test = self._made(self.source, given[0] or {}), self._made(other, given[1] or {})
            return (train, torch.arange(len(train))), (test, torch.arange(len(test)))
        splits = self._splits()
        if splits is not None:
            train, test = (self._made(self.source, arguments) for arguments in splits)
            return (train, torch.arange(len(train))), (test, torch.arange(len(test)))
        if self.holdout is None:
            name = type(self).__name__
            raise RecipeError(
                f"data: {name} has no parameter {' or '.join(SPLITS)}, so training and test examples are not known: set "
                "data.train_arguments and data.test_arguments, data.test_from to another name, or data.holdout=5 for every fifth"
            )
        both = self._made(self.source, {})
        held = torch.arange(len(both)) % self.holdout == 0
        return (both, torch.nonzero(~held).flatten()), (both, torch.nonzero(held).flatten())

    def _splits(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Arguments of the training and of the test examples; None if there is one set for both."""
        if self.train_arguments is not None or self.test_arguments is not None:
            return self.train_arguments or {}, self.test_arguments or {}
        parameters = _parameters(self.source)
        for name, (train, test) in SPLITS.items():
            if name in parameters and self.holdout is None:
                return {name: train}, {name: test}
        return None

    def _made(self, source: Any, more: Mapping[str, Any]) -> Any:
        """The dataset that a class or function makes, or an object is."""
        made: Any = source
        if not isinstance(source, Dataset | DataLoader):
            parameters = _parameters(source)
            asked = "root" in parameters and (self.root or _required(parameters["root"]))
            root = {"root": str(data_root(self.root))} if asked else {}
            try:
                with _seeded(0):  # a random split is the same in every call
                    made = source(**{**root, **self.arguments, **more})
            except Exception as error:  # code from outside may raise anything
                name = getattr(source, "__name__", type(source).__name__)
                kind = RecipeError if isinstance(error, TypeError) else MissingDataError
                raise kind(f"data: {name} raises {type(error).__name__}: {error}") from error
        made = made.dataset if isinstance(made, DataLoader) else made
        if isinstance(made, IterableDataset) or not (hasattr(made, "__getitem__") and hasattr(made, "__len__")):
            raise RecipeError(
                f"data: {type(self).__name__} gives a {type(made).__name__}, which has no examples by number (__getitem__, "
                "__len__), so a run could not be resumed; give a map-style Dataset"
            )
        if not len(made):
            raise MissingDataError(f"data: {type(self).__name__} gives no examples")
        return made

    @cached_property
    def _first(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        dataset, rows = self._sets[0]
        x, y = example_of(dataset, int(rows[0]))
        return tuple(x.shape), tuple(y.shape)  # type: ignore[return-value]

    @cached_property
    def _class_names(self) -> list[str]:
        dataset = self._sets[0][0]
        while isinstance(dataset, torch.utils.data.Subset):
            dataset = dataset.dataset
        named = self.names or getattr(dataset, "classes", None)
        names = [str(name) for name in named] if isinstance(named, list | tuple) else []
        count = self.class_count or len(names)
        if not count:
            labels = next((getattr(dataset, name) for name in ("targets", "labels", "y") if hasattr(dataset, name)), None)
            labels = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else labels
            try:
                count = 1 + int(torch.as_tensor(labels).max())
            except (TypeError, ValueError, RuntimeError) as error:
                name = type(self).__name__
                raise RecipeError(f"data: {name} does not say its classes; set data.class_count or data.names") from error
        return names if len(names) == count else [str(number) for number in range(count)]


@dataclass(frozen=True)
class OwnSplit:
    """Examples of a dataset in batches, read one by one; each is seeded from (seed, epoch, number)."""

    dataset: Any
    rows: Tensor  # numbers of the examples
    batch_size: int
    mean: float | list[float]
    std: float | list[float]
    seed: int | None = None
    workers: int = 0
    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        positive(self, "batch_size")

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, from batch number ``start`` on."""
        batches = rows_of_batches(len(self.rows), self.batch_size, self.seed, epoch)[start:]
        seed = None if self.seed is None else mix_seed(self.seed, epoch)
        yield from DataLoader(
            _Examples(self, seed),
            batch_sampler=[self.rows[batch].tolist() for batch in batches],
            num_workers=min(self.workers, len(batches)),
        )

    def fingerprint(self) -> str:
        """Hash of the number of examples and of some, at even distances: reading all may take hours."""
        digest = hashlib.sha256(f"{len(self.rows)} {self.mean} {self.std}".encode())
        for place in {i * len(self.rows) // HASHED for i in range(HASHED)}:
            x, y = _Examples(self, None)[int(self.rows[place])]
            digest.update(f"{place} {tuple(x.shape)} {y.tolist()}".encode())
            digest.update(x.contiguous().numpy().data)
        return digest.hexdigest()


class _Examples(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, split: OwnSplit, seed: int | None):
        self.split, self.seed = split, seed
        self.mean, self.std = (torch.tensor(as_list(value)).view(-1, 1, 1) for value in (split.mean, split.std))

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        with _seeded(mix_seed(self.seed or 0, number)):
            x, y = example_of(self.split.dataset, number)
            if self.seed is not None and (self.split.crop or self.split.flip):
                x = self._augmented(x)
        return (x - self.mean) / self.std, y

    def _augmented(self, x: Tensor) -> Tensor:
        return augment(x[None], self.split.crop, self.split.flip, torch.default_generator)[0]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generators that transforms use, and sets them back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - transforms draw from the global generators
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def example_of(dataset: Any, number: int) -> tuple[Tensor, Tensor]:
    """Image (C, H, W) float32, bytes divided by 255, and label () or (H, W) int64.

    Raises:
        DataError: the example has another form; the message names it.
    """
    found = dataset[number]
    if isinstance(found, dict):
        found = next(((found[x], found[y]) for x, y in PAIRS if x in found and y in found), found)
    if not (isinstance(found, tuple | list) and len(found) == 2):
        shown = f"a dictionary of {', '.join(map(str, found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise DataError(f"example {number} of {type(dataset).__name__} is {shown}; give (image, label)")
    image, label = found
    if not isinstance(image, Tensor | np.ndarray):
        image = np.array(image)  # Pillow's
    x = torch.as_tensor(image)
    if not isinstance(image, Tensor) and x.dim() == 3 and x.shape[0] not in (1, 3) and x.shape[2] in (1, 3, 4):
        x = x.permute(2, 0, 1)  # Pillow's and OpenCV's order
    x = x.unsqueeze(0) if x.dim() == 2 else x
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    y = torch.as_tensor(label)
    if x.dim() != 3 or not x.numel() or not bool(x.isfinite().all()) or y.is_floating_point() or y.is_complex():
        raise DataError(
            f"example {number} of {type(dataset).__name__} is an image {tuple(x.shape)} and a label {y.dtype}; give a finite "
            "image (C, H, W) and the number of its class"
        )
    return x.contiguous(), y.long()


def adapt(found: Any, given: Mapping[str, Any], module: Any) -> Callable[..., OwnDataset] | None:
    """What makes an ``OwnDataset`` of a Dataset's class, a function or an object in ``module``; None for anything else."""
    is_ours = inspect.isclass(found) and issubclass(found, LabelledData)
    is_class = inspect.isclass(found) and (issubclass(found, Dataset) or hasattr(found, "__getitem__"))
    if is_ours or not (is_class or inspect.isroutine(found) or isinstance(found, Dataset | DataLoader)):
        return None
    name = str(getattr(found, "__name__", type(found).__name__))
    source = staticmethod(found) if inspect.isroutine(found) else found
    own = {"source": source, "module": module, "__module__": module.__name__, "__doc__": found.__doc__}
    return _DatasetMaker(type(name, (OwnDataset,), own))


class _DatasetMaker:
    """Makes the data set from settings, of which those of the class or function become ``arguments``."""

    def __init__(self, cls: type[OwnDataset]):
        self.cls, self.__name__ = cls, cls.__name__
        self.own = {f.name for f in dataclasses.fields(cls)}
        foreign = {n: p for n, p in _parameters(cls.source).items() if n not in self.own and n not in SPLITS}
        self.foreign = set(foreign)
        named = [p for p in foreign.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        later = [p.replace(kind=p.KEYWORD_ONLY, default=NOT_GIVEN if _required(p) else p.default) for p in named]
        self.__signature__ = inspect.Signature([*inspect.signature(cls).parameters.values(), *later])
        self.__annotations__ = {
            **({} if isinstance(cls.source, Dataset | DataLoader) else hints_of(cls.source)),
            **hints_of(OwnDataset),
        }

    def __call__(self, **given: Any) -> OwnDataset:
        direct = {k: v for k, v in given.items() if k in self.foreign}
        rest = {k: v for k, v in given.items() if k not in self.foreign}
        return self.cls(**{**rest, "arguments": {**rest.get("arguments", {}), **direct}})


def _parameters(source: Any) -> dict[str, inspect.Parameter]:
    if isinstance(source, Dataset | DataLoader):
        return {}
    try:
        return dict(inspect.signature(source).parameters)
    except (TypeError, ValueError):
        return {}


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty
