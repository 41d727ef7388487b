"""What a comparison of rules measures: the angle to the reference's gradient by layer, seconds and memory of a gradient."""

from __future__ import annotations

import copy
import gc
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spikeprop.errors import TrainingCollapsed
from spikeprop.learn import Callback, LearningRule, TrainingState
from spikeprop.plugins.angles import degrees

ANGLE_OF = "angle of "  # before a weight's name; a rule's own angles are of segments


class AngleLog(Callback):
    """Adds ``angle of WEIGHT`` to the metrics of each epoch: degrees between the rule's gradient and the reference's.

    Args:
        rule: that trains.
        reference: whose gradient is the true one.
        x, y: one batch of training examples, the same in all epochs.
    """

    def __init__(self, rule: LearningRule, reference: LearningRule, x: Tensor, y: Tensor):
        self.rule, self.reference, self.batch = rule, reference, (x, y)

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        ours, true = (gradient(rule, training.model, *self.batch) for rule in (self.rule, self.reference))
        if dead := [name for name, value in true.items() if not value.any()]:
            raise TrainingCollapsed(
                f"the true gradient of {', '.join(dead)} is 0, so it has no direction: the network is silent; use other initial "
                "weights, a lower threshold or a lower rate"
            )
        metrics |= {ANGLE_OF + name: float(degrees(ours[name], true[name])) for name in true if name in ours}


def gradient(rule: LearningRule, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The rule's gradient of each weight (a parameter of two dimensions or more), on a copy of the network."""
    twin = copy.deepcopy(model).train()
    twin.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)
        rule.step(twin, x, y)
    for own in rule.parameters():
        own.grad = None
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None and p.dim() > 1}


def seconds_each(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each piece of work; all take turns, so that other load slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_initialized():  # whose work is only queued
                torch.cuda.synchronize()
            if number:  # the first one traces, allocates and tunes
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes, at one time, of tensors that were made within the mode.

    Args:
        there: tensors that exist before, whose views do not count.
    """

    def __init__(self, there: Iterable[Tensor]):
        super().__init__()
        self.peak = self._now = 0
        self._live = {self._key(t) for t in there}
        gc.collect()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := self._key(tensor)) not in self._live:
                storage = tensor.untyped_storage()
                self._live.add(key)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._free, key, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return out

    def _free(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._now -= size

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata
