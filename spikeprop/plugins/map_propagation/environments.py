"""Several gymnasium environments side by side whose state can be kept in a file.

An environment's state is the seed of its episode and the actions since: to take up a run again, the current episode is played
once more. So nothing needs pickling, and environments with a physics engine inside resume exactly, too. As gymnasium's vector
environments do, the step after an episode's last one ignores its action and begins the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from spikeprop.errors import MissingDataError, RecipeError
from spikeprop.runtime.seeding import mix_seed


class Environments:
    """Environments of one kind, with observations as float64.

    Args:
        name: as gymnasium registers it, such as "CartPole-v1".
        count: how many.
        seed: from it, an environment's number and an episode's number follow that episode's seed.
        continuous: for a Box action space, what makes an action of the actor's outputs.

    Attributes:
        x: (count, inputs) observations.
        reward, ended, truncated, started: (count,) of the last step; ``truncated`` is time running out before an end of its own.
    """

    def __init__(self, name: str, count: int, seed: int, continuous: Callable[..., np.ndarray] | None = None):
        self.name, self.seed = name, seed
        self._environments = [make(name) for _ in range(count)]
        self.continuous = continuous
        space = self._environments[0].action_space
        self.actions, self.discrete = outputs_of(space)
        self.inputs = int(np.prod(self._environments[0].observation_space.shape))
        self._bounds = () if self.discrete else (space.low, space.high)
        self.x = np.zeros((count, self.inputs))
        self.reward = np.zeros(count)
        self.ended, self.truncated, self.started = (np.zeros(count, dtype=bool) for _ in range(3))
        self._episode = [0] * count
        self._played: list[list[Any]] = [[] for _ in range(count)]
        for e in range(count):
            self._begin(e)

    def step(self, outputs: np.ndarray) -> None:
        """One step of each, from the actor's outputs (count, actions): one-hot for a discrete choice."""
        for e, environment in enumerate(self._environments):
            if self.ended[e]:
                self._episode[e] += 1
                self._begin(e)
            else:
                action = self._action(outputs[e])
                self._played[e].append(action if self.discrete else action.tolist())
                self._take(e, environment.step(action))

    def state(self) -> dict[str, Any]:
        """JSON values from which ``restore`` finds this place again."""
        return {"episode": list(self._episode), "played": [list(played) for played in self._played]}

    def restore(self, state: dict[str, Any]) -> None:
        """Play every current episode up to where it was."""
        for e, environment in enumerate(self._environments):
            self._episode[e] = state["episode"][e]
            self._begin(e)
            for action in state["played"][e]:
                self._played[e].append(action)
                self._take(e, environment.step(action if self.discrete else np.array(action, dtype=np.float32)))

    def close(self) -> None:
        """Free what the environments hold."""
        for environment in self._environments:
            environment.close()

    def _begin(self, e: int) -> None:
        seed = mix_seed(self.seed, e, self._episode[e]) % 2**31
        self.x[e] = np.asarray(self._environments[e].reset(seed=seed)[0]).ravel()
        self.reward[e], self.ended[e], self.truncated[e], self.started[e] = 0.0, False, False, True
        self._played[e] = []

    def _take(self, e: int, result: tuple[Any, ...]) -> None:
        observation, reward, terminated, truncated, _ = result
        self.x[e] = np.asarray(observation).ravel()
        self.reward[e], self.ended[e] = reward, terminated or truncated
        self.truncated[e], self.started[e] = truncated and not terminated, False

    def _action(self, output: np.ndarray) -> Any:
        if self.discrete:
            return int(output.argmax())
        assert self.continuous is not None
        return np.clip(self.continuous(output, *self._bounds), *self._bounds).astype(np.float32)


def make(name: str) -> Any:
    """A gymnasium environment.

    Raises:
        MissingDataError: gymnasium, or what it needs for this environment, is not installed.
        RecipeError: there is no environment of this name.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise MissingDataError("gymnasium is not installed; install the extra with: pip install 'spikeprop[rl]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of newer versions, and of what pygame imports
            return gymnasium.make(name, disable_env_checker=True)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingDataError(f"{name} needs Box2D; install the extra with: pip install 'spikeprop[rl]' ({error})") from error
    except gymnasium.error.Error as error:
        raise RecipeError(f"environment: gymnasium cannot make {name!r}: {error}") from error


def outputs_of(space: Any) -> tuple[int, bool]:
    """Outputs that an actor needs for an action space, and whether the action is one of several.

    Raises:
        RecipeError: neither Discrete nor Box.
    """
    if type(space).__name__ == "Discrete":
        return int(space.n), True
    if type(space).__name__ == "Box":
        return int(np.prod(space.shape)), False
    raise RecipeError(f"environment: actions of type {type(space).__name__} are not supported; Discrete and Box are")


def centred(output: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """-1 is the lowest action and 1 the highest."""
    return low + (output.reshape(low.shape) + 1) / 2 * (high - low)


def as_published(output: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The authors' formula, output * (high - low) - low: with bounds -1 and 1 an output of 0 is already the highest action."""
    return output.reshape(low.shape) * (high - low) - low
