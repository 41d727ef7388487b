"""gymnasium's spaces as numbers of a network: the outputs that choose an action, and the inputs of an observation.

Discrete actions are the most active of n outputs. MultiDiscrete and MultiBinary actions are numbered, and each combination has an
output. A Box has an output per number: mapped to the bounds where there are two, otherwise taken as it is and clipped to the one
bound. Observations are a Box as it is, and anything else as gymnasium flattens it: Discrete and MultiDiscrete one-hot,
MultiBinary as zeros and ones, Dict and Tuple one part after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spikeprop.errors import RecipeError

COMBINATIONS = 4096  # of a MultiDiscrete or MultiBinary action
BOUND = 1e18  # a larger bound (such as the largest float) is none
FLAT = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")

Mapping = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Actions:
    """The actions of a space.

    Args:
        space: the action space.
        mapping: of the outputs to an action between two bounds, for a Box.

    Attributes:
        outputs: number of outputs.
        discrete: an action is chosen by the largest output.

    Raises:
        RecipeError: the space is not supported, or has too many actions.
    """

    def __init__(self, space: Any, mapping: Mapping | None = None):
        self._space, self._mapping = space, mapping
        self._kind = kind = _kind(space)
        if kind not in FLAT:
            raise RecipeError(
                f"environment: actions of type {type(space).__name__} are not supported; Discrete, MultiDiscrete, MultiBinary "
                "and Box are (gymnasium's wrapper TransformAction turns others into one of them)"
            )
        self.discrete = kind != "Box"
        self._sizes: list[int] = []
        if kind == "Box":
            self.outputs = int(np.prod(space.shape))
            self._low, self._high = (np.asarray(one) for one in (space.low, space.high))
            self._bounded = (np.abs(self._low) < BOUND) & (np.abs(self._high) < BOUND)
        elif kind == "Discrete":
            self.outputs = int(space.n)
        else:
            self._sizes = np.ravel(space.nvec).tolist() if kind == "MultiDiscrete" else [2] * int(np.prod(space.shape))
            self.outputs = int(np.prod(np.array(self._sizes, dtype=object)))
            if self.outputs > COMBINATIONS:
                raise RecipeError(
                    f"environment: its {kind} action has {self.outputs} combinations, and each needs an output; at most "
                    f"{COMBINATIONS} are supported"
                )

    def chosen(self, output: np.ndarray) -> Any:
        """The choice as a JSON value, from the outputs (outputs,)."""
        if self.discrete:
            return int(output.argmax())
        return self._boxed(output).tolist()

    def action(self, choice: Any) -> Any:
        """The action in the space, of a choice."""
        if self._kind == "Box":
            return np.array(choice, dtype=self._space.dtype)
        if self._kind == "Discrete":
            return choice + int(self._space.start)
        found = np.reshape(np.unravel_index(choice, self._sizes), self._space.shape)
        return (found + getattr(self._space, "start", 0)).astype(self._space.dtype)

    def together(self, choices: list[Any]) -> np.ndarray:
        """The actions of several choices as one array."""
        if self._kind == "Discrete":
            return np.array(choices) + int(self._space.start)
        return np.array([self.action(one) for one in choices])

    def _boxed(self, output: np.ndarray) -> np.ndarray:
        assert self._mapping is not None
        if self._bounded.all():
            found = self._mapping(output, self._low, self._high)
        else:
            low, high = (np.where(self._bounded, one, sign) for one, sign in ((self._low, -1.0), (self._high, 1.0)))
            found = np.where(self._bounded, self._mapping(output, low, high), output.reshape(self._low.shape))
        found = np.clip(found, self._low, self._high)
        if np.issubdtype(self._space.dtype, np.integer):
            found = np.rint(found)
        return found.astype(self._space.dtype)


class Observations:
    """The observations of a space.

    Attributes:
        inputs: numbers of an observation.

    Raises:
        RecipeError: a part of the space has no fixed number of numbers.
    """

    def __init__(self, space: Any):
        _refuse(space, "its observation")
        self._space, self._box = space, _kind(space) == "Box"
        if self._box:
            self.inputs = int(np.prod(space.shape))
        else:
            from gymnasium.spaces import flatdim

            self.inputs = int(flatdim(space))

    def flat(self, observation: Any) -> np.ndarray:
        """(inputs,) numbers of an observation."""
        if self._box:
            return np.asarray(observation).ravel()
        from gymnasium.spaces import flatten

        try:
            return np.asarray(flatten(self._space, observation)).ravel()
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(
                f"environment: the observation {observation!r} is not in its space {self._space}: {error}"
            ) from error


def _kind(space: Any) -> str:
    """The name of gymnasium's space that this is, or derives from."""
    names = [one.__name__ for one in type(space).__mro__ if one.__module__.startswith("gymnasium.spaces")]
    return names[0] if names else type(space).__name__


def _refuse(space: Any, name: str) -> None:
    """Refuse spaces without a fixed number of numbers, by the name of the part."""
    kind = _kind(space)
    if kind in ("Dict", "Tuple"):
        parts = space.spaces.items() if kind == "Dict" else enumerate(space.spaces)
        for key, part in parts:
            _refuse(part, f"{name}[{key!r}]")
    elif kind not in FLAT:
        raise RecipeError(
            f"environment: {name} is of type {type(space).__name__}, which is not a fixed number of numbers; Box, Discrete, "
            "MultiDiscrete, MultiBinary, and Dict and Tuple of them are supported (gymnasium's wrappers TransformObservation and "
            "FilterObservation turn others into one of them)"
        )
