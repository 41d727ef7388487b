"""Settings of one learner: what differs from the settings that all learners share, so that each can have rates of its own.

``spikeprop sweep`` looks for them, such as ``tuned.reinforce.actor.rates=[3e-4,3e-4,1e-2],[1e-3,1e-3,1e-2]``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from spikeprop.plugins.map_propagation.network import Learner, TeamSettings
from spikeprop.runtime.checks import not_negative, positive_or_null


@dataclass(frozen=True, kw_only=True)
class TeamChanges:
    """What of a ``TeamSettings`` differs; None: nothing. Own rates are constant unless there are own final rates."""

    variances: list[float] | None = None
    rates: list[float] | None = None
    final_rates: list[float] | None = None
    trace: float | None = None

    def of(self, team: TeamSettings) -> TeamSettings:
        """The changed settings."""
        changes: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        if "rates" in changes:
            changes.setdefault("final_rates", None)
        return dataclasses.replace(team, **changes)


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """The settings of one learner.

    Attributes:
        actor, critic: what differs from the networks' shared settings.
        critic_learner: learner of the critic; default: the actor's.
        temperature: temperature of the softmax over actions; default: the shared one.
        entropy: weight of the entropy of the policy in the actor's objective; only a softmax over actions has one to learn.
            Backprop follows it through all layers, the other learners in the output layer only.
    """

    actor: TeamChanges = TeamChanges()
    critic: TeamChanges = TeamChanges()
    critic_learner: Learner | None = None
    temperature: float | None = None
    entropy: float = 0.0

    def __post_init__(self) -> None:
        not_negative(self, "entropy")
        positive_or_null(self, "temperature")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The own settings of each learner."""

    map: LearnerSettings = LearnerSettings()
    asynchronous: LearnerSettings = LearnerSettings()
    backprop: LearnerSettings = LearnerSettings()
    stochastic: LearnerSettings = LearnerSettings()
    reinforce: LearnerSettings = LearnerSettings()

    def of(self, learner: str) -> LearnerSettings:
        """The settings of a learner."""
        return getattr(self, learner)

    def changed(self) -> list[str]:
        """Learners with settings of their own."""
        return [name for name, own in vars(self).items() if own != LearnerSettings()]
