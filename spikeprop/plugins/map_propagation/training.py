"""The reinforcement learning loop: an actor and a critic in parallel environments, and the evaluation of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprop.errors import TrainingCollapsed
from spikeprop.plugins.map_propagation import kernels
from spikeprop.plugins.map_propagation.environments import Environments
from spikeprop.plugins.map_propagation.network import Noise, deterministic
from spikeprop.plugins.map_propagation.step import actor_critic_step
from spikeprop.plugins.map_propagation.vector import VectorEnvironments

EVALUATION_SEED = 10**6  # different from all seeds of training


@dataclass
class ActorCritic:
    """One run in progress.

    Attributes:
        critic, actor: the networks.
        critic_rule, actor_rule: their learning rules.
        environments: the environments.
        noise: random numbers of a step.
        reward_limit: rewards are clipped to [-limit, limit] for learning; None for no clipping.
        value: (E,) the critic's last estimates.
        step: number of steps so far.
        returns, lengths: of the finished episodes, in the order of their ends.
    """

    critic: kernels.Net
    critic_rule: kernels.Rule
    actor: kernels.Net
    actor_rule: kernels.Rule
    environments: Environments | VectorEnvironments
    noise: Noise
    reward_limit: float | None

    def __post_init__(self) -> None:
        count = len(self.environments.x)
        self.value, self.step = np.zeros(count), 0
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self._return, self._length = np.zeros(count), np.zeros(count, dtype=np.int64)

    def advance(self) -> None:
        """One step of every environment, and one update from the previous step.

        Raises:
            TrainingCollapsed: the parameters are not finite; checked at the end of an episode.
        """
        world = self.environments
        reward = world.reward
        if self.reward_limit is not None:
            reward = np.clip(reward, -self.reward_limit, self.reward_limit)
        actor_critic_step(
            self.critic, self.critic_rule, self.actor, self.actor_rule, world.x, self.noise(self.step), reward, world.ended,
            world.truncated, world.started, self.value, self.step,
        )  # fmt: skip
        world.step(self.actor.units[kernels.VALUE, :, -world.actions :])
        self.step += 1
        self._return += world.reward
        self._length += ~world.started
        if world.ended.any():
            self._close(world.ended)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the run's state, by name, for ``load``."""
        arrays = {
            **{f"{name}.{part}": getattr(net, part) for name, net in self._nets() for part in self._parts()},
            "value": self.value,
            "return": self._return,
            "length": self._length,
            "returns": np.array(self.returns),
            "lengths": np.array(self.lengths, dtype=np.int64),
        }
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def place(self) -> dict[str, Any]:
        """The rest of the run's state, as JSON values."""
        return {"step": self.step, "environments": self.environments.state()}

    def load(self, tensors: dict[str, Tensor], place: dict[str, Any]) -> None:
        """Restore the state of ``tensors`` and ``place``."""
        for name, net in self._nets():
            for part in self._parts():
                getattr(net, part)[...] = tensors[f"{name}.{part}"].numpy()
        self.value[...], self._return[...] = tensors["value"].numpy(), tensors["return"].numpy()
        self._length[...] = tensors["length"].numpy()
        self.returns, self.lengths = tensors["returns"].tolist(), tensors["lengths"].tolist()
        self.step = place["step"]
        self.environments.restore(place["environments"])

    def _parts(self) -> tuple[str, ...]:
        """What of a network lasts from step to step; the asynchronous learner's units do."""
        lasting = kernels.ASYNCHRONOUS in (self.critic_rule.learner, self.actor_rule.learner)
        return ("params", "trace", "units") if lasting else ("params", "trace")

    def _nets(self) -> list[tuple[str, kernels.Net]]:
        return [("critic", self.critic), ("actor", self.actor)]

    def _close(self, ended: np.ndarray) -> None:
        if not all(np.isfinite(net.params[kernels.WEIGHT].sum()) for _, net in self._nets()):
            raise TrainingCollapsed(
                f"the parameters are not finite after episode {len(self.returns)}: lower actor.rates and critic.rates, "
                "or raise the variances"
            )
        self.returns += self._return[ended].tolist()
        self.lengths += self._length[ended].tolist()
        self._return[ended], self._length[ended] = 0.0, 0


def evaluate(run: ActorCritic, episodes: int, seed: int) -> list[float]:
    """Returns of the policy without noise (units at their means, most probable action), on episodes not used in training."""
    world = Environments(run.environments.name, 1, seed + EVALUATION_SEED, run.environments.continuous)
    actor = deterministic(run.actor)
    quiet, returns, total = np.zeros((1, actor.units.shape[2])), [], 0.0
    while len(returns) < episodes:
        kernels.forward(actor, world.x.astype(actor.units.dtype, copy=False), quiet)
        world.step(actor.units[kernels.MEAN, :, -world.actions :])
        total += world.reward[0]
        if world.ended[0]:
            returns.append(total)
            total = 0.0
    world.close()
    return returns
