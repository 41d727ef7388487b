"""``VectorEnvironments``: environments that gymnasium steps together (its vector API), whose state can be saved in a file.

Where an environment has a vectorised version (``vector_entry_point``, as CartPole has), gymnasium steps all of them in a few
array operations; otherwise it steps one after the other. Vectorised environments share a generator of random numbers, so the
state is the seed and all actions since the start, and a resumed run replays them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spikeprop.errors import RecipeError
from spikeprop.plugins.map_propagation.environments import make
from spikeprop.plugins.map_propagation.spaces import Actions
from spikeprop.runtime.seeding import mix_seed


class VectorEnvironments:
    """Vectorised environments of one kind; arguments and attributes are those of ``Environments``.

    Raises:
        RecipeError: observations other than a Box, or environments that do not start their next episode in the step after an end.
    """

    def __init__(self, name: str, count: int, seed: int, continuous: Callable[..., np.ndarray] | None = None):
        from gymnasium.spaces import Box
        from gymnasium.vector import AutoresetMode

        self.name, self.seed, self.continuous = name, seed, continuous
        self._world = make(name, count)
        space = self._world.single_observation_space
        if not isinstance(space, Box):
            raise RecipeError(
                f"vector: the observations of {name} are of type {type(space).__name__}, and only those of type Box come as one "
                "array; leave vector out, or wrap the environment in gymnasium's FlattenObservation"
            )
        mode = self._world.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise RecipeError(
                f"vector: the vectorised {name} resets by {mode}, and only AutoresetMode.NEXT_STEP is supported; leave vector out"
            )
        self._actions = Actions(self._world.single_action_space, continuous)
        self.actions, self.discrete, self.inputs = self._actions.outputs, self._actions.discrete, int(np.prod(space.shape))
        self._played: list[list[Any]] = []
        self._begin(count)

    def step(self, outputs: np.ndarray) -> None:
        """See ``Environments.step``."""
        self._take(outputs.argmax(1).tolist() if self.discrete else [self._actions.chosen(one) for one in outputs])

    def state(self) -> dict[str, Any]:
        """The state as JSON values, for ``restore``."""
        return {"played": self._played}

    def restore(self, state: dict[str, Any]) -> None:
        """Replay everything up to the saved state."""
        self._begin(len(self.x))
        for choices in state["played"]:
            self._take(choices)

    def close(self) -> None:
        """Free the environments' resources."""
        self._world.close()

    def _begin(self, count: int) -> None:
        found, _ = self._world.reset(seed=mix_seed(self.seed, 0, 0) % 2**31)
        self.x = found.reshape(count, -1).astype(float)
        self.reward = np.zeros(count)
        self.ended, self.truncated = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        self.started = np.ones(count, dtype=bool)
        self._played = []

    def _take(self, choices: list[Any]) -> None:
        self._played.append(choices)
        found, reward, terminated, truncated, _ = self._world.step(self._actions.together(choices))
        self.x, self.reward = found.reshape(len(self.x), -1).astype(float), np.asarray(reward, dtype=float)
        self.started, self.ended = self.ended, terminated | truncated
        self.truncated = truncated & ~terminated
