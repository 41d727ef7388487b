"""``RIFLE`` and ``L2SP``: callbacks for fine-tuning a pretrained network; they combine with each other and any learning rule.

RIFLE (Li et al. 2020, ICML): the E epochs of training are divided into R + 1 periods. After each period but the last the head
is re-initialised; within a period its learning rate is lr/2 (1 + cos(pi t/u)), where u is the length of the period, times the
schedule's warm-up, while the other layers follow the schedule. Periods are complete epochs, of equal length if R + 1 divides E,
and else of lengths that differ by one; the authors' code drops the remaining epochs. It also resets after the very last epoch
and keeps the head's momentum over a reset; ours does neither. L2-SP (Li et al. 2018): a penalty alpha/2 |w - w0|^2 + beta/2
|head|^2, where w0 are the initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn import Callback, TrainingState, tracing
from spikeprop.runtime.seeding import seed_torch

TAG = "rifle_head"


class RIFLE(Callback):
    """Re-initialises the head ``resets`` times, never at the end of training, and tells the training so (``relearns``).

    Args:
        resets: number of resets R; 0 does not change the training. They end periods of complete epochs whose lengths differ by
            at most one: 3 resets in 6 epochs come after epochs 2, 3 and 4.
        cyclic: the head's learning rate restarts with each period, after the schedule's warm-up; otherwise it follows the
            schedule.
        head: name of the module; default: the layer with weights that produces the network's output.
        seed: seed of the new weights.

    Raises:
        ValueError: fewer than 0 resets.
    """

    needs_complete_parameters: ClassVar[bool] = True

    def __init__(self, *, resets: int = 1, cyclic: bool = True, head: str | None = None, seed: int = 0):
        if resets < 0:
            raise ValueError(f"resets is {resets}; use 0 for none")
        self.resets, self.cyclic, self.head, self.seed = resets, cyclic, head, seed

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self._acts:
            return groups
        own = {id(p) for p in self._find(model).parameters()}
        rest = [{**g, "params": [p for p in g["params"] if id(p) not in own]} for g in groups]
        head = [{**g, "params": [p for p in g["params"] if id(p) in own], TAG: True} for g in groups]
        return [g for g in (*rest, *head) if g["params"]]

    def on_start(self, training: TrainingState) -> None:
        self._find(training.model)
        if self.resets >= training.epochs:
            raise ValueError(f"resets is {self.resets}, which needs more than {training.epochs} epochs")
        if self._acts and not any(TAG in g for g in training.optimizer.param_groups):
            raise ValueError(
                "the head has no learning rate of its own: build the optimiser with rifle.param_groups(model, "
                "rule.param_groups(model)), or use cyclic=False"
            )

    def on_gradient(self, training: TrainingState) -> None:
        if training.epoch in self._ends(training.epochs):  # in each step: for resumed epochs, and callbacks in any order
            training.relearns = training.epoch
        if not self._acts:
            return
        warming = training.schedule.warming(training.steps_done / training.steps)
        done = training.epoch + training.step / training.steps_per_epoch
        starts = [0, *self._ends(training.epochs), training.epochs]
        period = max(i for i, start in enumerate(starts[:-1]) if start <= done)
        share = (done - starts[period]) / (starts[period + 1] - starts[period])
        for group in training.optimizer.param_groups:
            if TAG in group:
                group["lr"] = group["initial_lr"] * warming * 0.5 * (1 + math.cos(math.pi * share))

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        if training.epoch + 1 not in self._ends(training.epochs):
            return
        head = self._find(training.model)
        with torch.random.fork_rng():
            seed_torch(self.seed, training.epoch)
            head.reset_parameters()  # type: ignore[operator]
        for p in head.parameters():  # the momentum of the old head would move the new one
            training.optimizer.state.pop(p, None)

    @property
    def _acts(self) -> bool:
        """Whether the head has its own learning rate; without resets the training is not changed."""
        return self.cyclic and self.resets > 0

    def _ends(self, epochs: int) -> list[int]:
        """Epochs after which the head is reset: the ends of all periods but the last."""
        return [round(k * epochs / (self.resets + 1)) for k in range(1, self.resets + 1)]

    def _find(self, model: nn.Module) -> nn.Module:
        name = find_head(model) if self.head is None else self.head
        if name not in dict(model.named_modules()):
            raise ValueError(
                f"head is {name!r}, but the network has no such module; its last modules: {', '.join(_names(model)[-5:])}"
            )
        module = model.get_submodule(name)
        if not hasattr(module, "reset_parameters"):
            raise ValueError(f"the head {name!r} is a {type(module).__name__}, which has no reset_parameters(); name a layer")
        return module


class L2SP(Callback):
    """Penalises the distance of weights to their initial values, and the head's weights; buffers are not changed.

    Args:
        alpha: strength for the pretrained weights.
        beta: strength for the head.
        head: as for ``RIFLE``.
    """

    needs_complete_parameters: ClassVar[bool] = True

    def __init__(self, *, alpha: float = 1e-2, beta: float = 1e-4, head: str | None = None):
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; use 0 for none")
        self.alpha, self.beta, self.head = alpha, beta, head
        self.start: dict[str, Tensor] = {}
        self._resumed = False

    def state_dict(self) -> dict[str, Tensor]:
        return self.start

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.start, self._resumed = dict(state), bool(state)

    def on_start(self, training: TrainingState) -> None:
        name = find_head(training.model) if self.head is None else self.head
        self.of_head = {id(p) for p in training.model.get_submodule(name).parameters()}
        began = {n: p.detach().clone() for n, p in training.model.named_parameters() if id(p) not in self.of_head}
        self.start = {n: self.start[n].to(p) if self._resumed else p for n, p in began.items()}
        self._resumed = False  # the next training starts from its own weights

    @torch.no_grad()
    def on_gradient(self, training: TrainingState) -> None:
        for name, p in training.model.named_parameters():
            if p.grad is None:
                continue
            if id(p) in self.of_head:
                p.grad.add_(p, alpha=self.beta)
            else:
                p.grad.add_(p - self.start[name], alpha=self.alpha)


def find_head(model: nn.Module) -> str:
    """Name of the layer that produces the network's output (before pooling and reshaping); of its last layer if tracing fails.

    Raises:
        SegmentError: the network has no layer with weights.
    """
    try:
        traced = tracing.trace(model)
        node = tracing.output_of(traced.graph)
        while not tracing.is_layer(traced, node):
            (node,) = node.all_input_nodes  # ValueError if it has several inputs
        return str(node.target)
    except (SegmentError, ValueError):
        names = _names(model)
        if not names:
            raise SegmentError(f"{type(model).__name__} has no layer with weights, hence no head") from None
        return names[-1]


def _names(model: nn.Module) -> list[str]:
    """Layers with weights and without children, in the order of their registration."""
    return [
        name
        for name, m in model.named_modules()
        if name
        and not isinstance(m, tracing.NORMS)
        and next(m.children(), None) is None
        and next(m.parameters(), None) is not None
    ]
