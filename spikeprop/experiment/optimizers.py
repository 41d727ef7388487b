"""A stage's optimiser, and which learning rates it has.

A recipe gives the rate as ``lr`` of the stage, beside the optimiser. An optimiser may have other rates, such as MuonSGD's
``matrix_lr``, which are its own settings: ``lr`` does not move them, and the commands ``run``, ``check`` and ``sweep`` print a
note that names them (``fixed_rates``). Where an experiment has a second rate for the same optimiser, all of the optimiser's
rates move in its ratio to ``lr`` (``optimizer_of``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from spikeprop.learn import with_rates
from spikeprop.recipe import Component


def check_optimizer(optimizer: Component[Optimizer]) -> None:
    """Raises ValueError if a recipe gives the optimiser an lr or weight decay, which have keys of their own.

    The recipe of a run folder has all defaults, so what is equal to the optimiser's own default is accepted; it is not used.
    """
    own, given = optimizer.parameters(), optimizer.arguments
    taken = [key for key in ("lr", "weight_decay") if key in given and (key not in own or given[key] != own[key].default)]
    if taken:
        raise ValueError(f"optimizer has {' and '.join(taken)}; write it beside the optimizer, as a key of the stage")


def optimizer_of(
    optimizer: Component[Optimizer],
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    rate: float | None = None,
) -> Optimizer:
    """An optimiser over parameters, or over groups, whose factors on the rates are multiplied by these.

    Args:
        optimizer: as the recipe has it.
        parameters: or groups of them.
        lr: the recipe's learning rate, beside which ``own_rates`` stand as they are.
        weight_decay: of the optimiser.
        rate: learning rate in place of ``lr``; ``own_rates`` change in the same ratio.
    """
    if rate is not None and rate != lr:
        optimizer = optimizer.replace(**{name: value * rate / lr for name, value in own_rates(optimizer).items()})
    rates = {"lr": lr if rate is None else rate, "weight_decay": weight_decay}
    return optimizer.build(with_rates(list(parameters), **rates), **rates)


def own_rates(optimizer: Component[Optimizer]) -> dict[str, float]:
    """Rates that an optimiser has beside ``lr``, such as MuonSGD's ``matrix_lr``: its settings whose names end in "_lr"."""
    defaults = {name: p.default for name, p in optimizer.parameters().items()}
    values = {name: optimizer.arguments.get(name, default) for name, default in defaults.items() if name.endswith("_lr")}
    return {name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def fixed_rates(experiment: Any, path: str = "") -> dict[str, str]:
    """By the path of each ``lr`` of an experiment that trains: the rates of its optimiser that it does not move, in words."""
    found: dict[str, str] = {}
    optimizer = getattr(experiment, "optimizer", None)
    own = own_rates(optimizer) if isinstance(optimizer, Component) and getattr(experiment, "epochs", 1) else {}
    if own and isinstance(optimizer, Component):
        rates = " and ".join(f"{path}optimizer.{name} = {value:g}" for name, value in own.items())
        kind = optimizer.use.rpartition(".")[2]
        found[f"{path}lr"] = f"{path}lr does not move {rates}, which {kind} has beside it: to change both, set both"
    for held in dataclasses.fields(experiment) if dataclasses.is_dataclass(experiment) else ():
        value = getattr(experiment, held.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, Component):
            found |= fixed_rates(value, f"{path}{held.name}.")
    return found
