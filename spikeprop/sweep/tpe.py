"""Proposals of the tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna.

A proposal depends only on the plan, its number and the results before it, so a resumed sweep proposes the same values as one that
was not killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikeprop.errors import RunError
from spikeprop.runtime.seeding import mix_seed
from spikeprop.sweep.plan import SweepAxis, SweepPlan

Result = tuple[dict[str, str], float | None]  # values, and the metric; None of a failed trial


def propose(plan: SweepPlan, number: int, results: Sequence[Result]) -> dict[str, str]:
    """Values for trial ``number``, given the results of the trials before.

    Raises:
        RunError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise RunError("--sampler tpe needs Optuna; in a copy of the repository: pip install ./hardware '.[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=mix_seed(plan.seed, number) % 2**32)
    study = optuna.create_study(direction="minimize" if plan.least else "maximize", sampler=sampler)
    space = {axis.key: _distribution(optuna, axis) for axis in plan.axes}
    for values, metric in results:
        parameters = {axis.key: _parameter(axis, values[axis.key]) for axis in plan.axes}
        state = optuna.trial.TrialState.COMPLETE if metric is not None else optuna.trial.TrialState.FAIL
        study.add_trial(optuna.trial.create_trial(state=state, params=parameters, distributions=space, value=metric))
    return {key: value if isinstance(value, str) else repr(value) for key, value in study.ask(space).params.items()}


def _distribution(optuna: Any, axis: SweepAxis) -> Any:
    if axis.values:
        return optuna.distributions.CategoricalDistribution(axis.values)
    kind = optuna.distributions.IntDistribution if axis.integers else optuna.distributions.FloatDistribution
    return kind(axis.low, axis.high, log=axis.log)


def _parameter(axis: SweepAxis, text: str) -> str | int | float:
    return text if axis.values else int(text) if axis.integers else float(text)
