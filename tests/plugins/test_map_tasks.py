"""The tasks of MAP propagation: rewards, reproducible and resumable runs, recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from spikeprop.cli import main
from spikeprop.errors import MissingDataError, RecipeError
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.learn import load_checkpoint
from spikeprop.plugins.map_propagation import Control, Multiplexer, Regression, TeamSettings, progress
from spikeprop.plugins.map_propagation.environments import Environments, as_published, centred
from spikeprop.plugins.map_propagation.tuning import LearnerSettings, Tuned
from spikeprop.recipe import Recipe, load_recipe

needs_gymnasium = pytest.mark.skipif(
    find_spec("gymnasium") is None, reason="gymnasium is not installed: pip install 'spikeprop[rl]'"
)
needs_box2d = pytest.mark.skipif(find_spec("Box2D") is None, reason="Box2D is not installed: pip install 'spikeprop[rl]'")


def small_multiplexer(**changes: Any) -> Multiplexer:
    settings: dict[str, Any] = {"address_bits": 2, "samples": 64_000, "batch": 32, "hidden": [32, 16], "seeds": 2}
    team = TeamSettings(variances=[0.3, 1.0, 1.0], rates=[4e-2, 4e-5, 4e-6])
    return Multiplexer(**{**settings, "team": team, "learners": ["map", "backprop", "reinforce"], **changes})


def run_in(folder: Path, experiment: Any) -> dict[str, Any]:
    experiment.run(Context(RunFolder(folder, Recipe("test", experiment)), "test", lambda _: None))
    return json.loads((folder / "report.json").read_text())


def test_multiplexer_rewards_the_addressed_bit() -> None:
    task = small_multiplexer(address_bits=3)
    x, answer = task.sample(np.random.default_rng(0), 200)
    assert x.shape == (200, 3 + 8)
    assert set(x.flatten()) == {-1.0, 1.0}
    for row, right in zip(x, answer):
        bits = ["1" if v > 0 else "0" for v in row]
        assert right == int(bits[3 + int("".join(bits[:3]), 2)])
    outputs = np.eye(2)[1 - answer]
    assert task.reward(np.eye(2)[answer], answer).tolist() == [1.0] * 200
    assert task.reward(outputs, answer).tolist() == [-1.0] * 200


def test_learners_of_the_multiplexer_have_the_papers_order(tmp_path: Path) -> None:
    found = run_in(tmp_path, small_multiplexer(seeds=1))["learners"]
    assert found["map"]["without_noise"]["mean"] > 0.9
    assert found["backprop"]["without_noise"]["mean"] > 0.9
    assert found["reinforce"]["whole_run"]["mean"] < min(found[name]["whole_run"]["mean"] for name in ("map", "backprop")) - 0.1


def test_regression_is_learnt_and_its_reward_is_the_squared_error(tmp_path: Path) -> None:
    team = TeamSettings(variances=[0.0075, 0.025, 0.025], rates=[6e-2, 6e-5, 6e-6])
    task = Regression(samples=32_000, batch=64, hidden=[32, 16], seeds=1, team=team, learners=["map", "reinforce"])
    _, answer = task.sample(np.random.default_rng(0), 1000)
    assert answer.min() >= 0
    assert task.reward(answer[:, None] + 2.0, answer).tolist() == pytest.approx([-4.0] * 1000)
    found = run_in(tmp_path, task)["learners"]
    assert found["map"]["without_noise"]["mean"] > -0.2 * answer.var()
    assert found["map"]["whole_run"]["mean"] > found["reinforce"]["whole_run"]["mean"]


def control(**changes: Any) -> Control:
    team = {"variances": [0.03, 0.1, 0.1], "rates": [1e-2, 1e-5, 1e-6], "trace": 0.95}
    settings: dict[str, Any] = {"environment": "CartPole-v1", "episodes": 12, "seeds": 2, "hidden": [16, 8], "learners": ["map"]}
    defaults = {"actor": TeamSettings(**team), "critic": TeamSettings(**team), "temperature": 2.0, "evaluation_episodes": 2}
    return Control(**{**settings, **defaults, **changes})


@needs_gymnasium
@pytest.mark.parametrize("environment", ["CartPole-v1", pytest.param("LunarLander-v3", marks=needs_box2d)])
def test_interrupted_control_run_has_the_same_result(environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted twice in the middle of an episode, with two environments per run."""
    experiment = control(environment=environment, environments=2, episodes=8)
    run_in(tmp_path / "whole", experiment)
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)
    keep, left = progress.Progress.keep, [0]

    def keep_until_the_end(self: progress.Progress, run: Any) -> None:
        keep(self, run)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "keep", keep_until_the_end)
    for steps in (50, 70):
        left[0] = steps
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "stopped", experiment)
    assert load_checkpoint(tmp_path / "stopped" / "map.safetensors").description["run"] is not None
    run_in(tmp_path / "stopped", experiment)
    whole, stopped = (load_checkpoint(tmp_path / name / "map.safetensors") for name in ("whole", "stopped"))
    assert whole.description == stopped.description
    assert whole.tensors.keys() == stopped.tensors.keys()
    assert all(torch.equal(tensor, stopped.tensors[name]) for name, tensor in whole.tensors.items())


@needs_gymnasium
def test_settings_of_a_learner_that_does_not_run_are_named(tmp_path: Path) -> None:
    own = Tuned(reinforce=LearnerSettings(entropy=0.1), map=LearnerSettings(temperature=3.0))
    experiment, told = control(episodes=1, seeds=1, evaluation_episodes=0, tuned=own), []
    experiment.run(Context(RunFolder(tmp_path, Recipe("test", experiment)), "test", told.append))
    assert told == ["tuned.reinforce: not used, since learners are map"]


def test_interrupted_bandit_run_has_the_same_result() -> None:
    task = small_multiplexer(samples=32 * 250)
    whole, first, second = (task.start("map", 3) for _ in range(3))
    for step in range(40):
        whole.advance()
        if step < 17:
            first.advance()
    second.load(first.tensors(), json.loads(json.dumps(first.place())))
    while second.step < 40:
        second.advance()
    assert second.rewards == whole.rewards
    assert np.array_equal(second.net.params, whole.net.params)


@needs_gymnasium
def test_episodes_follow_from_the_seed() -> None:
    def observations(seed: int, steps: int = 60) -> np.ndarray:
        world, seen = Environments("CartPole-v1", 2, seed), []
        for _ in range(steps):
            world.step(np.array([[1.0, 0.0], [0.0, 1.0]]))
            seen.append(world.x.copy())
        return np.array(seen)

    assert np.array_equal(observations(5), observations(5))
    assert not np.array_equal(observations(5)[:, 0], observations(5)[:, 1])
    assert not np.array_equal(observations(5), observations(6))


@needs_gymnasium
def test_the_step_after_an_end_begins_the_next_episode() -> None:
    world = Environments("CartPole-v1", 1, 0)
    assert world.started[0]
    while not world.ended[0]:
        world.step(np.array([[1.0, 0.0]]))
        assert world.reward[0] == 1.0
        assert not world.started[0]
    assert not world.truncated[0]
    fallen = world.x.copy()
    world.step(np.array([[1.0, 0.0]]))
    assert world.started[0]
    assert not world.ended[0]
    assert world.reward[0] == 0.0
    assert abs(fallen).max() > 0.2 > abs(world.x).max() * 4


@needs_gymnasium
def test_truncation_differs_from_termination() -> None:
    world = Environments("MountainCarContinuous-v0", 1, 0, centred)
    for step in range(999):
        world.step(np.zeros((1, 1)))
        assert world.ended[0] == world.truncated[0] == (step == 998)


def test_mappings_of_continuous_actions() -> None:
    low, high = np.array([-1.0], dtype=np.float32), np.array([1.0], dtype=np.float32)
    assert [float(centred(np.array([a]), low, high)[0]) for a in (-1, 0, 0.5)] == [-1, 0, 0.5]
    assert [float(as_published(np.array([a]), low, high)[0]) for a in (-1, 0, 0.5)] == [-1, 1, 2]


@pytest.mark.slow
@needs_gymnasium
def test_cartpole_is_learnt(tmp_path: Path) -> None:
    found = run_in(tmp_path, control(episodes=120, seeds=5, hidden=[64, 32], critic=TeamSettings(
        variances=[0.03, 0.1, 0.1], rates=[2e-2, 2e-5, 2e-6], trace=0.95), learners=["map", "reinforce"],
    ))["learners"]  # fmt: skip
    assert found["map"]["last_12"]["mean"] > 150
    assert found["reinforce"]["last_12"]["mean"] < 100


@needs_gymnasium
@pytest.mark.slow
def test_cached_kernels_give_the_same_results_as_compiled_ones(tmp_path: Path) -> None:
    runs = []
    for name in ("compiled", "cached"):
        command = [sys.executable, "-m", "spikeprop", "run", "map_cartpole", "seeds=1", "episodes=60", "evaluation_episodes=1"]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        subprocess.run([*command, "--out", str(tmp_path / name)], env=environment, check=True, capture_output=True)
        runs.append(json.loads((tmp_path / name / "report.json").read_text())["learners"])
    assert any((tmp_path / "cache").rglob("*.nbc"))
    assert runs[0] == runs[1]


@needs_gymnasium
@pytest.mark.parametrize("name", ["cartpole", "acrobot", "mountain_car", pytest.param("lunar_lander", marks=needs_box2d)])
def test_recipes_of_control_run(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["run", f"map_{name}", "learners=[map]", "seeds=1", "--smoke", "--out", str(tmp_path / "r")]
    )
    assert result.exit_code == 0, result.output
    assert "MAP propagation, mean return" in result.output
    assert {"report.json", "report.png", "map.safetensors", "recipe.yaml"} <= {p.name for p in (tmp_path / "r").iterdir()}


@pytest.mark.parametrize(
    ("name", "learners"),
    [("map_multiplexer", ["map", "backprop", "stochastic", "reinforce"]), ("map_regression", ["map", "backprop", "reinforce"])],
)
def test_recipes_of_bandits_run(name: str, learners: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["run", name, "--smoke", "--out", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert list(report["learners"]) == learners


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("actor.rates=[1e-2, 1e-5]", r"actor\.rates has 2 numbers for 3 layers"),
        ("critic.variances=[0.1, 0.1, 0.0]", "all must be positive"),
        ("learners=[map, map]", "name each once"),
        ("learners=[mapp]", "learners"),
        ("discount=1.5", r"discount is 1\.5"),
        ("hidden=[]", "at least one layer"),
    ],
)
def test_invalid_recipes_are_refused(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("map_cartpole", [override])


@needs_gymnasium
def test_unsupported_environments_are_refused() -> None:
    with pytest.raises(RecipeError, match="cannot make 'CartPole-v9'"):
        control(environment="CartPole-v9").check()


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingDataError, match=r"hardware .\.\[rl\]"):
        control().check(here=True)
