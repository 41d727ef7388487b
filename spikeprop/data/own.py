"""``OwnDataset``: any torch ``Dataset`` or ``DataLoader`` of images in a recipe: ``data: {use: "my_data.py:MyDataset"}``.

``use`` names a class, a function that returns a Dataset or DataLoader, or such an object. Its training and test examples are told
apart by its parameter ``train`` (true, false) or ``split`` ("train", "test"), by ``train_arguments`` and ``test_arguments``, by
``test_from`` (another name in the same module), or by ``holdout``. Order and batches are the recipe's; of a DataLoader the
dataset is used. Examples are (image, label), or a dictionary of both; images (C, H, W) as tensors, arrays or Pillow's.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from spikeprop.data.base import ImageData, LabelledData, data_root
from spikeprop.data.own_examples import OwnSplit, example_of, seeded
from spikeprop.errors import MissingDataError, RecipeError, told
from spikeprop.recipe.component import hints_of
from spikeprop.runtime.seeding import generator

SPLITS = {"train": (True, False), "split": ("train", "test")}  # parameters that say which examples, and their values
NOT_GIVEN = object()  # default of a parameter that may also stand in ``arguments``


@dataclass(frozen=True, kw_only=True)
class OwnDataset(ImageData):
    """Images of a Dataset or DataLoader of one's own.

    Attributes:
        arguments: of the class or function, for both splits; its parameters may also be written beside ``use``.
        train_arguments, test_arguments: for one of them, beside ``train`` or ``split``.
        test_from: name, in the same module, of what gives the test examples.
        holdout: one in so many examples, drawn by a fixed seed, is a test example, where there is one set for both.
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
            raise ValueError(f"holdout is {self.holdout}; one in so many examples is a test example: at least 2")
        if self.holdout is not None and (self.test_from, self.train_arguments, self.test_arguments) != (None, None, None):
            raise ValueError("holdout is for one set of both: leave out test_from, train_arguments and test_arguments")
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
        reading = {"crop": self.crop, "flip": self.random_flip(), "classes": self.classes}
        return OwnSplit(dataset, rows[:limit], batch_size, self.mean, self.std, seed, self.workers, **reading)

    @cached_property
    def _sets(self) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
        """Datasets of training and testing, and the numbers of their examples."""
        if self.test_from is not None:
            other = None if self.test_from.startswith("_") else getattr(self.module, self.test_from, None)
            if other is None:
                raise RecipeError(f"data.test_from: there is no {self.test_from!r} in {self.module.__name__}")
            return self._two(self._made(self.source, self.train_arguments or {}), self._made(other, self.test_arguments or {}))
        splits = self._splits()
        if splits is not None:
            return self._two(*(self._made(self.source, arguments) for arguments in splits))
        if self.holdout is None:
            name = type(self).__name__
            raise RecipeError(
                f"data: {name} has no parameter {' or '.join(SPLITS)}, so training and test examples are not known: set "
                "data.train_arguments and data.test_arguments, data.test_from to another name, or data.holdout=5 for every fifth"
            )
        both = self._made(self.source, {})
        held = torch.randperm(len(both), generator=generator(0)) % self.holdout == 0
        return (both, torch.nonzero(~held).flatten()), (both, torch.nonzero(held).flatten())

    def _two(self, train: Any, test: Any) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
        """Two datasets with all of their examples, whose classes are the same."""
        name, names = type(self).__name__, [_classes_of(dataset) for dataset in (train, test)]
        if train is test:
            raise RecipeError(
                f"data: {name} gives one dataset for training and testing (a DataLoader's sampler is not used); set "
                "data.test_from to another name, or data.holdout=5"
            )
        if all(names) and names[0] != names[1]:
            shown = [", ".join(own)[:80] for own in names]
            raise RecipeError(
                f"data: {name} has the classes {shown[0]} in training and {shown[1]} in testing, so one number means two "
                "classes; give both the same list"
            )
        return (train, torch.arange(len(train))), (test, torch.arange(len(test)))

    def _splits(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Arguments of the training and of the test examples; None if there is one set for both."""
        if self.holdout is not None:
            return None
        parameters = _parameters(self.source)
        own = next(({name: value} for name, value in SPLITS.items() if name in parameters), {})
        train, test = ({name: values[which] for name, values in own.items()} for which in (0, 1))
        train, test = {**train, **(self.train_arguments or {})}, {**test, **(self.test_arguments or {})}
        if train == test and train:
            raise RecipeError(f"data: {type(self).__name__} gets the arguments {train} for both training and testing")
        return (train, test) if train or test else None

    def _made(self, source: Any, more: Mapping[str, Any]) -> Any:
        """The dataset that a class or function makes, or an object is."""
        made: Any = source
        if not isinstance(source, Dataset | DataLoader):
            parameters = _parameters(source)
            asked = "root" in parameters and (self.root or _required(parameters["root"]))
            root = {"root": str(data_root(self.root))} if asked else {}
            given = {**root, **self.arguments, **more, **(root if self.root else {})}  # the user's root is the last word
            try:
                with seeded(0):  # a random split is the same in every call
                    made = source(**given)
            except Exception as error:  # code from outside may raise anything
                name = getattr(source, "__name__", type(source).__name__)
                kind = RecipeError if isinstance(error, TypeError) else MissingDataError
                raise kind(f"data: {name} raises {told(error)}") from error
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
        dataset = _whole(self._sets[0][0])
        names = list(self.names) or _classes_of(dataset)
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


def _whole(dataset: Any) -> Any:
    """The dataset of which a part was taken."""
    return _whole(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _classes_of(dataset: Any) -> list[str]:
    """Names that a dataset has for its classes; empty if it has none."""
    found = getattr(_whole(dataset), "classes", None)
    return [str(name) for name in found] if isinstance(found, list | tuple) else []


def _parameters(source: Any) -> dict[str, inspect.Parameter]:
    if isinstance(source, Dataset | DataLoader):
        return {}
    try:
        return dict(inspect.signature(source).parameters)
    except (TypeError, ValueError):
        return {}


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty
