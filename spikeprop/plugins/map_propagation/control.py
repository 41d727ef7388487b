"""``Control``: MAP propagation (also asynchronous), backprop and REINFORCE control a gymnasium environment, several seeds each.

All are actor-critics with eligibility traces (Chung 2020, arXiv:2010.07893), with the same initial weights and seeds of
episodes; they differ in the error signal of hidden units. Variances and learning rates are the same, or each learner's own
(``tuned``). Backprop's hidden units are deterministic, or stochastic and reparametrised. REINFORCE is MAP propagation without
relaxation: each unit follows its own score. Its critic's scores are weighted by A - b, where b is the output with all units at
their means: an unbiased estimate of the gradient of E[A].
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from spikeprop.errors import RecipeError
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.plugins.map_propagation import kernels
from spikeprop.plugins.map_propagation.environments import Environments, as_published, centred, make
from spikeprop.plugins.map_propagation.network import LEARNERS, Learner, Noise, TeamSettings, check_learners, make_net
from spikeprop.plugins.map_propagation.pictures import draw
from spikeprop.plugins.map_propagation.progress import Progress
from spikeprop.plugins.map_propagation.published import compared
from spikeprop.plugins.map_propagation.spaces import Actions, Observations
from spikeprop.plugins.map_propagation.statistics import curve, differences, rows, summary
from spikeprop.plugins.map_propagation.step import noise_width
from spikeprop.plugins.map_propagation.training import ActorCritic, evaluate
from spikeprop.plugins.map_propagation.tuning import Tuned
from spikeprop.plugins.map_propagation.vector import VectorEnvironments
from spikeprop.plugins.reports import save_report
from spikeprop.runtime.checks import not_negative, positive, positive_or_null
from spikeprop.runtime.progress import bar

MAPPINGS = {"centred": centred, "published": as_published}
SMOKE_EPISODES = 4
PRECISIONS = {"double": np.float64, "single": np.float32}


@dataclass(frozen=True, kw_only=True)
class Control:
    """Compare actor-critics on a gymnasium environment.

    Attributes:
        seed: seed of the first run; further runs use the following integers.
        environment: name in gymnasium; its actions are discrete (or combinations), or continuous.
        episodes: number of episodes of each run.
        seeds: number of runs of each learner.
        actor, critic: settings of the two networks, for all learners.
        tuned: what differs for one learner.
        hidden: widths of the hidden layers of both networks.
        environments: number of parallel environments in one run; their gradients are averaged. From 16 on their networks are
            computed together.
        vector: step the environments by gymnasium's vector API, which is fast where the environment has a vectorised version.
        precision: of the networks; "single" is faster for many environments.
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
    tuned: Tuned = field(default_factory=Tuned)
    hidden: list[int]
    environments: int = 1
    vector: bool = False
    precision: Literal["double", "single"] = "double"
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
        positive_or_null(self, "reward_limit")
        check_learners(self.learners)
        critics = [self.tuned.of(name).critic_learner for name in self.learners]
        if not self.iterations and "asynchronous" in (*self.learners, *critics):
            raise ValueError("iterations is 0, and the asynchronous learner draws its action in them; use at least 1")
        if min(self.hidden, default=0) < 1:
            raise ValueError(f"hidden is {self.hidden}; name at least one layer, with a positive width")
        self.actor.check(len(self.hidden) + 1, "actor")
        self.critic.check(len(self.hidden) + 1, "critic")
        for learner in LEARNERS:
            own = self.tuned.of(learner)
            own.actor.of(self.actor).check(len(self.hidden) + 1, f"tuned.{learner}.actor")
            own.critic.of(self.critic).check(len(self.hidden) + 1, f"tuned.{learner}.critic")

    def check(self, *, here: bool = False) -> None:
        """Check that the environment can be made, if gymnasium is installed.

        Args:
            here: require gymnasium, as a run does.

        Raises:
            RecipeError: an unknown environment, an unsupported space of actions or observations, or a bonus for the entropy of
                continuous actions.
            MissingDataError: gymnasium or Box2D is not installed.
        """
        from importlib.util import find_spec

        if here or find_spec("gymnasium") is not None:
            environment = make(self.environment)
            actions = Actions(environment.action_space)
            Observations(environment.observation_space)
            environment.close()
            self._check_entropy(actions.discrete)
            if self.vector:
                self._world(self.seed).close()

    def smoke(self) -> Control:
        """The same experiment with two seeds and few episodes."""
        episodes = min(SMOKE_EPISODES, self.episodes)
        return dataclasses.replace(self, episodes=episodes, seeds=min(2, self.seeds), evaluation_episodes=1)

    def run(self, context: Context) -> Report:
        """Run all learners; finished ones are read from the folder, an interrupted one is resumed."""
        folder = context.folder
        if unused := [name for name in self.tuned.changed() if name not in self.learners]:
            names = ", ".join(f"tuned.{name}" for name in unused)
            context.notify(f"{names}: not used, since learners are {', '.join(self.learners)}")
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
            "published": compared(
                self.environment, self.episodes, {name: found.mean(1).tolist() for name, found in histories.items()}
            ),
        }
        return save_report(
            context,
            values,
            lambda found: rows(found, "return"),
            lambda found, path: draw(found, path, context.name, "episodes", "return"),
        )

    def start(self, learner: str, seed: int) -> ActorCritic:
        """A new run."""
        world, own = self._world(seed), self.tuned.of(learner)
        self._check_entropy(world.discrete)
        learners = own.critic_learner or learner, learner
        temperature = (own.temperature or self.temperature) if world.discrete else None
        teams = own.critic.of(self.critic), own.actor.of(self.actor)
        nets = [
            make_net(
                [world.inputs, *self.hidden, outputs], team, learner=name, seed=2 * seed + number, batch=self.environments,
                temperature=temperature if number else None, discount=self.discount, dtype=PRECISIONS[self.precision],
            )
            for number, (team, outputs, name) in enumerate(zip(teams, (1, world.actions), learners))
        ]  # fmt: skip
        rules = [
            kernels.Rule(LEARNERS[name], self.iterations, self.step, self.discount, self.anneal, own.entropy if number else 0.0)
            for number, name in enumerate(learners)
        ]
        noise = Noise(seed, (self.environments, sum(noise_width(net, rule) for net, rule in zip(nets, rules))))
        return ActorCritic(nets[0], rules[0], nets[1], rules[1], world, noise, self.reward_limit)

    def _world(self, seed: int) -> Environments | VectorEnvironments:
        kind = VectorEnvironments if self.vector else Environments
        return kind(self.environment, self.environments, seed, MAPPINGS[self.actions])

    def _check_entropy(self, discrete: bool) -> None:
        """Raises RecipeError if a learner shall raise the entropy of continuous actions."""
        for learner in self.learners:
            if self.tuned.of(learner).entropy and not discrete:
                raise RecipeError(
                    f"tuned.{learner}.entropy: {self.environment} has continuous actions, whose noise (the last of "
                    "actor.variances) is fixed, so there is no entropy to learn; leave it out and raise that variance"
                )

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
