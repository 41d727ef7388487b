"""gymnasium's spaces: actions lie in their space, observations become the right numbers, the rest is refused at check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikeprop.errors import RecipeError
from spikeprop.plugins.map_propagation.environments import Environments, as_published, centred
from spikeprop.plugins.map_propagation.spaces import Actions, Observations
from tests.plugins.test_map_tasks import control, run_in

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces

FLOAT_MAX = np.finfo(np.float32).max
ACTIONS: dict[str, Any] = {
    "offset": spaces.Discrete(3, start=1),
    "negative offset": spaces.Discrete(2, start=-5),
    "combinations": spaces.MultiDiscrete([2, 3], start=[1, -4]),
    "matrix of combinations": spaces.MultiDiscrete(np.array([[2, 2], [3, 2]])),
    "switches": spaces.MultiBinary((2, 2)),
    "bounded": spaces.Box(-2.0, 5.0, (2,)),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,)),
    "bounded below": spaces.Box(0.0, np.inf, (2,)),
    "bounded above": spaces.Box(-np.inf, np.array([-1.0, 3.0], dtype=np.float32)),
    "each number otherwise": spaces.Box(np.array([-np.inf, -1, 0]), np.array([2, 1, np.inf]), dtype=np.float64),
    "by the largest float": spaces.Box(-FLOAT_MAX, FLOAT_MAX, (2,)),
    "integers": spaces.Box(-3, 7, (2,), dtype=np.int64),
    "a scalar": spaces.Box(-1.0, 1.0, ()),
}
OBSERVATIONS: dict[str, Any] = {
    "numbers": spaces.Box(-1.0, 1.0, (2, 3)),
    "one of five": spaces.Discrete(5, start=2),
    "two choices": spaces.MultiDiscrete([2, 4]),
    "bits": spaces.MultiBinary(3),
    "named": spaces.Dict(where=spaces.Box(-1.0, 1.0, (2,)), what=spaces.Discrete(3)),
    "pair": spaces.Tuple((spaces.Discrete(2), spaces.Dict(a=spaces.MultiBinary(2)))),
}


class World(gymnasium.Env):
    """Checks its actions, observes samples of its space; an episode has 5 steps."""

    def __init__(self, action_space: Any, observation_space: Any):
        self.action_space, self.observation_space = action_space, observation_space
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.seen.append(action)
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 5, False, {}


def register(monkeypatch: pytest.MonkeyPatch, action: Any, observation: Any) -> str:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.envs.registration.registry))
    gymnasium.register("SpacesOf/Test-v0", entry_point=lambda **_: World(action, observation))
    return "SpacesOf/Test-v0"


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("mapping", [centred, as_published])
def test_actions_lie_in_their_space(name: str, mapping: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Environments(register(monkeypatch, ACTIONS[name], OBSERVATIONS["numbers"]), 2, 0, mapping)
    draws = np.random.default_rng(0)
    for _ in range(30):
        world.step(draws.normal(size=(2, world.actions), scale=3.0))
        assert np.isfinite(world.x).all()
        assert np.isfinite(world.reward).all()


def test_every_discrete_action_has_an_output() -> None:
    for name in ("offset", "negative offset", "combinations", "matrix of combinations", "switches"):
        actions = Actions(ACTIONS[name])
        found = {np.asarray(actions.action(actions.chosen(row))).tobytes() for row in np.eye(actions.outputs)}
        assert len(found) == actions.outputs
    offset = Actions(ACTIONS["offset"])
    assert [offset.action(offset.chosen(row)) for row in np.eye(3)] == [1, 2, 3]


def test_outputs_without_two_bounds_are_taken_and_clipped() -> None:
    actions = Actions(ACTIONS["each number otherwise"], centred)
    assert actions.action(actions.chosen(np.array([5.0, 0.5, -2.0]))).tolist() == [2.0, 0.5, 0.0]
    assert actions.action(actions.chosen(np.array([-50.0, -3.0, 7.0]))).tolist() == [-50.0, -1.0, 7.0]


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_are_flattened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    space = OBSERVATIONS[name]
    world = Environments(register(monkeypatch, ACTIONS["offset"], space), 1, 0)
    assert world.x.shape == (1, gymnasium.spaces.flatdim(space))
    sample = space.sample()
    flat = Observations(space).flat(sample)
    again = gymnasium.spaces.flatten(space, gymnasium.spaces.unflatten(space, flat))
    assert np.array_equal(flat, again)
    assert Observations(spaces.Discrete(5, start=2)).flat(4).tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(("action", "observation"), [("offset", "named"), ("combinations", "one of five"), ("unbounded", "pair")])
def test_runs_learn_in_these_spaces_and_replay_their_episodes(
    action: str, observation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = register(monkeypatch, ACTIONS[action], OBSERVATIONS[observation])
    experiment = control(environment=name, episodes=4, seeds=1)
    experiment.check()
    found = run_in(tmp_path, experiment)["learners"]["map"]
    assert np.isfinite(found["whole_run"]["mean"])
    first, second = (experiment.start("map", 0) for _ in range(2))
    for _ in range(8):
        first.advance()
    second.load(first.tensors(), json.loads(json.dumps(first.place())))
    assert np.array_equal(first.environments.x, second.environments.x)


@pytest.mark.parametrize(
    ("action", "observation", "says"),
    [
        (spaces.Dict(a=spaces.Discrete(2)), OBSERVATIONS["numbers"], "actions of type Dict are not supported; Discrete, Multi"),
        (spaces.Text(3), OBSERVATIONS["numbers"], "actions of type Text are not supported"),
        (spaces.MultiBinary(20), OBSERVATIONS["numbers"], "MultiBinary action has 1048576 combinations"),
        (spaces.MultiDiscrete([10] * 30), OBSERVATIONS["numbers"], f"MultiDiscrete action has {10**30} combinations"),
        (ACTIONS["offset"], spaces.Text(3), "its observation is of type Text, which is not a fixed number of numbers"),
        (ACTIONS["offset"], spaces.Dict(a=spaces.Sequence(spaces.Discrete(2))), r"its observation\['a'\] is of type Sequence"),
        (
            ACTIONS["offset"],
            spaces.Tuple((spaces.Discrete(2), spaces.Graph(spaces.Box(0, 1, (2,)), None))),
            r"observation\[1\] is of type Graph",
        ),
    ],
)  # fmt: skip
def test_other_spaces_are_refused_at_check(action: Any, observation: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=says):
        control(environment=register(monkeypatch, action, observation)).check()


def test_observation_outside_of_its_space_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the observation \{'b': 1\} is not in its space"):
        Observations(spaces.Dict(a=spaces.Discrete(2))).flat({"b": 1})
