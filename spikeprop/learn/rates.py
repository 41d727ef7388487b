"""``BiasRate``: biases, and everything else with one number a channel, learn at a rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from spikeprop.learn.callback import Callback

FACTORS = {"lr_factor": "lr", "weight_decay_factor": "weight_decay"}  # in a group: factors on the stage's settings


class BiasRate(Callback):
    """Parameters with one dimension (biases, gains and shifts of batch-norm) get a learning rate and weight decay of their own.

    Args:
        lr: factor on the stage's learning rate.
        weight_decay: factor on the stage's weight decay; 0 for none. SGD shrinks a weight by lr * weight_decay a step, so 1 / lr
            shrinks these as fast as the others.
    """

    def __init__(self, *, lr: float = 1.0, weight_decay: float = 1.0):
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it is a factor, 0 or more")
        self.factors = {"lr_factor": lr, "weight_decay_factor": weight_decay}

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        own = [{**g, "params": [p for p in g["params"] if p.ndim == 1], **_multiplied(g, self.factors)} for g in groups]
        rest = [{**g, "params": [p for p in g["params"] if p.ndim != 1]} for g in groups]
        return [g for g in (*own, *rest) if g["params"]]


def with_rates(groups: list[Any], **settings: float) -> list[Any]:
    """Parameter groups as torch.optim takes them: their factors multiplied by the stage's ``lr`` and ``weight_decay``."""
    found = []
    for group in groups:
        if isinstance(group, dict):
            own = {name: settings[name] * group[factor] for factor, name in FACTORS.items() if factor in group}
            group = {name: value for name, value in group.items() if name not in FACTORS} | own
        found.append(group)
    return found


def _multiplied(group: dict[str, Any], factors: dict[str, float]) -> dict[str, float]:
    return {name: group.get(name, 1.0) * factor for name, factor in factors.items()}
