"""Several parallel gymnasium environments whose state can be saved in a file.

The state of an environment is the seed of its episode and the actions since: a resumed run replays the current episode. So no
pickling is needed, and environments with a physics engine resume exactly, too. As in gymnasium's vector environments, the step
after the last one of an episode ignores its action and starts the next episode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from spikeprop.errors import MissingDataError, RecipeError
from spikeprop.plugins.map_propagation.spaces import Actions, Observations
from spikeprop.runtime.seeding import mix_seed


class Environments:
    """Parallel environments of one kind, with observations in float64.

    Args:
        name: name in gymnasium, such as "CartPole-v1".
        count: number of environments.
        seed: with the numbers of environment and episode it determines the seed of an episode.
        continuous: for a Box action space, the mapping from the actor's outputs to an action between the bounds.

    Attributes:
        x: (count, inputs) observations.
        reward, ended, truncated, started: (count,) of the last step; ``truncated``: the episode ended by a time limit only.
    """

    def __init__(self, name: str, count: int, seed: int, continuous: Callable[..., np.ndarray] | None = None):
        self.name, self.seed = name, seed
        self._environments = [make(name) for _ in range(count)]
        self.continuous = continuous
        self._actions = Actions(self._environments[0].action_space, continuous)
        self._observations = Observations(self._environments[0].observation_space)
        self.actions, self.discrete, self.inputs = self._actions.outputs, self._actions.discrete, self._observations.inputs
        self.x = np.zeros((count, self.inputs))
        self.reward = np.zeros(count)
        self.ended, self.truncated, self.started = (np.zeros(count, dtype=bool) for _ in range(3))
        self._episode = [0] * count
        self._played: list[list[Any]] = [[] for _ in range(count)]
        for e in range(count):
            self._begin(e)

    def step(self, outputs: np.ndarray) -> None:
        """One step of each environment, from the actor's outputs (count, actions): one-hot for discrete actions."""
        for e, environment in enumerate(self._environments):
            if self.ended[e]:
                self._episode[e] += 1
                self._begin(e)
            else:
                choice = self._actions.chosen(outputs[e])
                self._played[e].append(choice)
                self._take(e, environment.step(self._actions.action(choice)))

    def state(self) -> dict[str, Any]:
        """The state as JSON values, for ``restore``."""
        return {"episode": list(self._episode), "played": [list(played) for played in self._played]}

    def restore(self, state: dict[str, Any]) -> None:
        """Replay every current episode up to the saved state."""
        for e, environment in enumerate(self._environments):
            self._episode[e] = state["episode"][e]
            self._begin(e)
            for choice in state["played"][e]:
                self._played[e].append(choice)
                self._take(e, environment.step(self._actions.action(choice)))

    def close(self) -> None:
        """Free the environments' resources."""
        for environment in self._environments:
            environment.close()

    def _begin(self, e: int) -> None:
        seed = mix_seed(self.seed, e, self._episode[e]) % 2**31
        self.x[e] = self._observations.flat(self._environments[e].reset(seed=seed)[0])
        self.reward[e], self.ended[e], self.truncated[e], self.started[e] = 0.0, False, False, True
        self._played[e] = []

    def _take(self, e: int, result: tuple[Any, ...]) -> None:
        observation, reward, terminated, truncated, _ = result
        self.x[e] = self._observations.flat(observation)
        self.reward[e], self.ended[e] = reward, terminated or truncated
        self.truncated[e], self.started[e] = truncated and not terminated, False


def make(name: str, count: int | None = None) -> Any:
    """Make a gymnasium environment, or ``count`` of them as a vector environment.

    Args:
        name: name in gymnasium; "module:Name-v0" imports the module first, which registers an environment of one's own.
        count: number of environments; None for a plain environment.

    Raises:
        MissingDataError: gymnasium, or a package that this environment needs, is not installed.
        RecipeError: gymnasium has no environment of this name.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise MissingDataError("gymnasium is not installed; in the repository: pip install ./hardware '.[rl]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about newer versions, and from pygame's imports
            if count is None:
                return gymnasium.make(name, disable_env_checker=True)
            return gymnasium.make_vec(name, num_envs=count)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingDataError(f"{name} needs Box2D; in the repository: pip install ./hardware '.[rl]' ({error})") from error
    except gymnasium.error.Error as error:
        raise RecipeError(f"environment: gymnasium cannot make {name!r}: {error}") from error
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"environment: the module of {name!r} cannot be imported ({error}); run in the folder that contains it, or install it"
        ) from error


def centred(output: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Map -1 to the lowest action and 1 to the highest."""
    return low + (output.reshape(low.shape) + 1) / 2 * (high - low)


def as_published(output: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The author's formula, output * (high - low) - low: with bounds -1 and 1, an output of 0 is already the highest action."""
    return output.reshape(low.shape) * (high - low) - low
