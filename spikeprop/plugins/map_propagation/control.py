"""``Control``: MAP propagation, backprop and REINFORCE control a gymnasium environment, with several seeds each.

All three are actor-critics with eligibility traces (Chung 2020, arXiv:2010.07893), with the same initial weights, seeds of
episodes, variances and learning rates; they differ in the error signal of hidden units. Backprop's hidden units are
deterministic. REINFORCE is MAP propagation without relaxation: each unit follows its own score. Its critic's scores are
weighted by A - b, where b is the output with all units at their means: an unbiased estimate of the gradient of E[A].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.plugins.map_propagation import kernels
from spikeprop.plugins.map_propagation.environments import Environments, as_published, centred, make
from spikeprop.plugins.map_propagation.network import LEARNERS, Noise, TeamSettings, check_learners, make_net
from spikeprop.plugins.map_propagation.pictures import draw
from spikeprop.plugins.map_propagation.progress import Progress
from spikeprop.plugins.map_propagation.spaces import Actions, Observations
from spikeprop.plugins.map_propagation.statistics import curve, differences, rows, summary
from spikeprop.plugins.map_propagation.training import ActorCritic, evaluate
from spikeprop.plugins.reports import save_report
from spikeprop.runtime.checks import not_negative, positive
from spikeprop.runtime.progress import bar

Learner = Literal["map", "backprop", "reinforce"]
MAPPINGS = {"centred": centred, "published": as_published}
SMOKE_EPISODES = 4
# mean return over complete runs, 10 seeds: MAP from the README of the author's code, the others from a notebook in a fork of it
PUBLISHED = {
    "CartPole-v1": {"map": 459.70, "backprop": 458.96, "reinforce": 47.29},
    "Acrobot-v1": {"map": -100.29, "backprop": -106.29, "reinforce": -148.42},
    "LunarLander-v3": {"map": 127.88, "backprop": 104.92, "reinforce": -62.05},
    "MountainCarContinuous-v0": {"map": 39.45, "backprop": 4.30, "reinforce": -35.52},
}


@dataclass(frozen=True, kw_only=True)
class Control:
    """Compare actor-critics on a gymnasium environment.

    Attributes:
        seed: seed of the first run; further runs use the following integers.
        environment: name in gymnasium; its actions are discrete (or combinations), or continuous.
        episodes: number of episodes of each run.
        seeds: number of runs of each learner.
        actor, critic: settings of the two networks.
        hidden: widths of the hidden layers of both networks.
        environments: number of parallel environments in one run; their gradients are averaged.
        discount: discount factor of rewards.
        temperature: temperature of the softmax over actions.
        iterations, step: iterations and step size of MAP propagation's relaxation; the step is relative to a layer's variance. It
            must be below 2 / L (``StochasticNetwork.stable_step``); 0.5 is, as long as the deeper layers' weights stay about
            as small as initially.
        anneal: steps over which learning rates change to their final values.
        reward_limit: rewards are clipped to [-limit, limit] for learning; null for no clipping.
        actions: mapping of continuous actions: "centred" (-1 and 1 are the bounds) or "published", the author's formula, which
            is not centred.
        learners: the learners to run.
        evaluation_episodes: episodes of the policy without noise, after each run.
    """

    seed: int = 0
    environment: str
    episodes: int
    seeds: int = 10
    actor: TeamSettings
    critic: TeamSettings
    hidden: list[int]
    environments: int = 1
    discount: float = 0.98
    temperature: float = 1.0
    iterations: int = 20
    step: float = 0.5
    anneal: int = 0
    reward_limit: float | None = None
    actions: Literal["centred", "published"] = "centred"
    learners: list[Learner]
    evaluation_episodes: int = 20

    def __post_init__(self) -> None:
        positive(self, "episodes", "seeds", "environments", "temperature", "step")
        not_negative(self, "iterations", "anneal", "evaluation_episodes")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; it must lie in [0, 1]")
        if self.reward_limit is not None and self.reward_limit <= 0:
            raise ValueError(f"reward_limit is {self.reward_limit}; it must be positive, or null")
        check_learners(self.learners)
        if min(self.hidden, default=0) < 1:
            raise ValueError(f"hidden is {self.hidden}; name at least one layer, with a positive width")
        self.actor.check(len(self.hidden) + 1, "actor")
        self.critic.check(len(self.hidden) + 1, "critic")

    def check(self, *, here: bool = False) -> None:
        """Check that the environment can be made, if gymnasium is installed.

        Args:
            here: require gymnasium, as a run does.

        Raises:
            RecipeError: an unknown environment, or an unsupported space of actions or observations.
            MissingDataError: gymnasium or Box2D is not installed.
        """
        from importlib.util import find_spec

        if here or find_spec("gymnasium") is not None:
            environment = make(self.environment)
            Actions(environment.action_space)
            Observations(environment.observation_space)
            environment.close()

    def smoke(self) -> Control:
        """The same experiment with two seeds and few episodes."""
        episodes = min(SMOKE_EPISODES, self.episodes)
        return dataclasses.replace(self, episodes=episodes, seeds=min(2, self.seeds), evaluation_episodes=1)

    def run(self, context: Context) -> Report:
        """Run all learners; finished ones are read from the folder, an interrupted one is resumed."""
        folder = context.folder
        for name in self.learners:
            folder.stage(name, lambda name=name: self._learn(name, context))
        runs = {name: Progress(folder.path / f"{name}.safetensors").finished for name in self.learners}
        histories = {name: np.array([run["returns"][: self.episodes] for run in found]) for name, found in runs.items()}
        window = min(100, max(1, self.episodes // 10))
        values: dict[str, Any] = {
            "environment": self.environment,
            "episodes": self.episodes,
            "seeds": self.seeds,
            "window": window,
            "learners": {name: self._describe(runs[name], histories[name], window) for name in self.learners},
            "difference": differences(histories),
            "published": PUBLISHED.get(self.environment, {}),
        }
        return save_report(
            context,
            values,
            lambda found: rows(found, "return"),
            lambda found, path: draw(found, path, context.name, "episodes", "return"),
        )

    def start(self, learner: str, seed: int) -> ActorCritic:
        """A new run."""
        world = Environments(self.environment, self.environments, seed, MAPPINGS[self.actions])
        temperature = self.temperature if world.discrete else None
        nets = [
            make_net(
                [world.inputs, *self.hidden, outputs], team, learner=learner, seed=2 * seed + number, batch=self.environments,
                temperature=temperature if number else None, discount=self.discount,
            )
            for number, (team, outputs) in enumerate(((self.critic, 1), (self.actor, world.actions)))
        ]  # fmt: skip
        rule = kernels.Rule(LEARNERS[learner], self.iterations, self.step, self.discount, self.anneal)
        noise = Noise(seed, (self.environments, sum(net.units.shape[2] for net in nets)))
        return ActorCritic(nets[0], nets[1], rule, world, noise, self.reward_limit)

    def _learn(self, learner: str, context: Context) -> dict[str, Any]:
        progress = Progress(context.folder.path / f"{learner}.safetensors")
        with bar(learner, total=self.seeds * self.episodes, unit="episode") as shown:
            while len(progress.finished) < self.seeds:
                number = len(progress.finished)
                run = self.start(learner, self.seed + number)
                progress.resume(run)
                while len(run.returns) < self.episodes:
                    run.advance()
                    progress.keep(run)
                    shown.update(number * self.episodes + min(len(run.returns), self.episodes) - shown.n)
                progress.finish(run, self._result(run, self.seed + number))
                run.environments.close()
        return {"steps": sum(run["steps"] for run in progress.finished)}

    def _result(self, run: ActorCritic, seed: int) -> dict[str, Any]:
        evaluated = evaluate(run, self.evaluation_episodes, seed)
        return {"seed": seed, "steps": run.step, "returns": run.returns, "evaluation": evaluated}

    def _describe(self, runs: list[dict[str, Any]], history: np.ndarray, window: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "whole_run": summary(history.mean(1)),
            f"last_{window}": summary(history[:, -window:].mean(1)),
            "steps": sum(run["steps"] for run in runs),
            "curve": curve(history, window),
        }
        if self.evaluation_episodes:
            found["without_noise"] = summary([float(np.mean(run["evaluation"])) for run in runs])
        return found
