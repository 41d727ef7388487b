"""What ``fit`` is given as batches: understood, or refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from spikeprop.errors import DataError, LabelError
from spikeprop.learn.distributed.data_parallel import DataParallel
from spikeprop.runtime.batches import Batch, Sequences
from spikeprop.runtime.labels import IGNORED, has_ignored
from spikeprop.runtime.ordinary import trainable, unusual
from spikeprop.snn import SpikingNetwork


def check_collection(batches: Any) -> None:
    """Refuse what is no collection of batches that can be read once an epoch.

    Raises:
        DataError: says what to pass.
    """
    pair = isinstance(batches, tuple) and any(isinstance(part, Tensor) for part in batches)
    try:
        collection = len(batches) >= 0 and hasattr(batches, "__iter__")
    except TypeError:  # it has none, as a generator, or one that fails, as a DataLoader of an IterableDataset
        collection = False
    if pair or not collection or isinstance(batches, Dataset | Tensor | Mapping | str):
        raise DataError(
            f"fit reads batches once an epoch, and was given a {type(batches).__name__}: pass a split "
            "(data.train(32, seed=0)), a DataLoader of a known length, or a list of (images, labels)"
        )


def read_batch(batch: Any, model: nn.Module, parallel: DataParallel) -> Batch:
    """Examples and labels of a batch, as the network can read them and autograd can save them; float64 as the network computes.

    Examples are a tensor (B, ...), of sequences (B, T, ...), or ``Sequences`` of unequal length.

    Raises:
        DataError: examples that a network cannot read.
        LabelError: no pair of tensors, or another number of labels.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise LabelError(f"a batch is {what}: give pairs of tensors (images, labels)")
    x, y = batch
    values = x.values if isinstance(x, Sequences) else x
    _check(values, y, parallel, model)
    floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if values.dtype == torch.float64 and len(floats) == 1:  # NumPy's own type
        x = x.to(*floats)
    if isinstance(x, Sequences):
        return replace(x, values=trainable(x.values)), trainable(y)
    return trainable(x), trainable(y)


def _order(x: Tensor, y: Tensor, model: nn.Module) -> str:
    """What to do with sequences that have their time first, as a network reads them."""
    network = next((module for module in model.modules() if isinstance(module, SpikingNetwork)), None)
    if network is None or y.ndim == 0 or x.ndim != len(network.input_shape) + 2:
        return ""
    remedy = ": x.transpose(0, 1)" if x.shape[1] == len(y) else ""
    return f"; batches of sequences have the examples first, (batch, time, ...){remedy}"


def _check(x: Any, y: Any, parallel: DataParallel, model: nn.Module) -> None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise LabelError(f"a batch holds {type(x).__name__} and {type(y).__name__}: give pairs of tensors (images, labels)")
    for what, found in (("images", unusual(x)), ("labels", unusual(y))):
        if found is not None:
            raise DataError(f"the tensor of {what} {found}")
    if x.dtype in (torch.uint8, torch.bool):
        raise DataError(f"images are {x.dtype}; normalise them first, for example (x.float() / 255 - mean) / std")
    if x.ndim == 0 or y.ndim == 0 or len(x) not in (len(y), len(y[parallel.processes.rows(len(y))])):
        held = [len(part) if part.ndim else "one number instead of" for part in (x, y)]  # a process may have read its own images
        raise LabelError(f"a batch has {held[0]} images and {held[1]} labels: give one label for each image{_order(x, y, model)}")
    if len(y) == 0:
        raise DataError("a batch holds no examples: leave it out")
    if parallel.several and has_ignored(y):  # each process would divide by the number of its own labels
        raise LabelError(f"labels of {IGNORED} (no class) are not supported in several processes: train in one")
