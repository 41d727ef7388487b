"""``Multiplexer`` and ``Regression``: the paper's tasks without time, in which each action is followed immediately by its reward.

For a batch of inputs, the parameters follow the mean of reward * input * signal. The multiplexer gives a reward of 1 for the
correct bit and -1 for the wrong one. In the regression, MAP propagation and backprop know the target y and follow y - (mean
output) (Chung 2020, arXiv:2010.07893, and the author's code); REINFORCE sees only the reward -(A - y)^2, minus the reward of
the network with all units at their means.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeprop.errors import TrainingCollapsed
from spikeprop.evaluate import Report
from spikeprop.experiment.context import Context
from spikeprop.plugins.map_propagation import batch, kernels, updates
from spikeprop.plugins.map_propagation.network import (
    LEARNERS,
    Learner,
    Noise,
    TeamSettings,
    check_learners,
    deterministic,
    make_net,
)
from spikeprop.plugins.map_propagation.pictures import draw
from spikeprop.plugins.map_propagation.progress import Progress
from spikeprop.plugins.map_propagation.statistics import curve, differences, rows, summary
from spikeprop.plugins.reports import save_report
from spikeprop.runtime.checks import not_negative, positive
from spikeprop.runtime.progress import bar
from spikeprop.runtime.seeding import mix_seed

BINS = 250  # a run's history holds the mean reward of this number of equal parts
WINDOW = 5  # number of parts in a running mean
TESTED = 10_000  # test samples, for the network without noise


@dataclass(frozen=True, kw_only=True)
class Bandit(ABC):
    """Common part of the two tasks.

    Attributes:
        seed: seed of the first run; further runs use the following integers.
        seeds: number of runs of each learner.
        samples: training samples of each run.
        batch: samples whose gradients are averaged.
        hidden: widths of the hidden layers.
        team: variances and learning rates of the layers.
        iterations, step: iterations and step size of MAP propagation's relaxation; the step is relative to a layer's variance.
        learners: the learners to run.
    """

    seed: int = 0
    seeds: int = 10
    samples: int
    batch: int = 128
    hidden: list[int]
    team: TeamSettings
    iterations: int = 20
    step: float = 0.5
    learners: list[Learner]

    def __post_init__(self) -> None:
        positive(self, "seeds", "batch", "step")
        if self.samples < self.batch * BINS:
            raise ValueError(f"samples is {self.samples}; it must be at least {BINS} batches of {self.batch}")
        not_negative(self, "iterations")
        check_learners(self.learners)
        if "asynchronous" in self.learners:
            raise ValueError("learners: asynchronous needs a task with time; name others")
        if min(self.hidden, default=0) < 1:
            raise ValueError(f"hidden is {self.hidden}; name at least one layer, with a positive width")
        self.team.check(len(self.hidden) + 1, "team")

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Number of inputs and outputs of the network."""

    @property
    @abstractmethod
    def temperature(self) -> float | None:
        """Temperature of a softmax output; None for a Gaussian output."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (count, inputs) and their targets (count,)."""

    @abstractmethod
    def reward(self, output: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Rewards (count,) of outputs (count, outputs): one-hot choices, or numbers."""

    @abstractmethod
    def weights(self, net: kernels.Net, learner: str, x: np.ndarray, target: np.ndarray, reward: np.ndarray) -> np.ndarray:
        """Factors (count,) of the samples' signals."""

    def check(self, *, here: bool = False) -> None:
        """Build the network of each learner; all other settings are checked when they are read."""
        for learner in self.learners:
            self.start(learner, self.seed)

    def smoke(self) -> Bandit:
        """The same experiment with two seeds and the minimum of samples."""
        return dataclasses.replace(self, seeds=min(2, self.seeds), batch=8, samples=8 * BINS)

    def run(self, context: Context) -> Report:
        """Run all learners; finished ones are read from the folder, an interrupted one is resumed."""
        folder = context.folder
        for name in self.learners:
            folder.stage(name, lambda name=name: self._learn(name, context))
        runs = {name: Progress(folder.path / f"{name}.safetensors").finished for name in self.learners}
        histories = {name: np.array([run["rewards"] for run in found]) for name, found in runs.items()}
        values: dict[str, Any] = {
            "samples": self.samples,
            "seeds": self.seeds,
            "window": WINDOW,
            "learners": {name: self._describe(runs[name], histories[name]) for name in self.learners},
            "difference": differences(histories),
            "published": {},
        }
        unit = f"samples, in {BINS} parts of {self.samples // BINS:,}"
        return save_report(
            context,
            values,
            lambda found: rows(found, "reward"),
            lambda found, path: draw(found, path, context.name, unit, "reward"),
        )

    def start(self, learner: str, seed: int) -> BanditRun:
        """A new run."""
        inputs, outputs = self.shape
        net = make_net(
            [inputs, *self.hidden, outputs], self.team, learner=learner, seed=seed, batch=self.batch,
            temperature=self.temperature, with_trace=False,
        )  # fmt: skip
        return BanditRun(self, learner, seed, net)

    def _learn(self, learner: str, context: Context) -> dict[str, Any]:
        progress = Progress(context.folder.path / f"{learner}.safetensors")
        with bar(learner, total=self.seeds * BINS, unit="part") as shown:
            while len(progress.finished) < self.seeds:
                number = len(progress.finished)
                run = self.start(learner, self.seed + number)
                progress.resume(run)
                while len(run.rewards) < BINS:
                    run.advance()
                    progress.keep(run)
                    shown.update(number * BINS + len(run.rewards) - shown.n)
                progress.finish(run, {"seed": run.seed, "rewards": run.rewards, "test": run.test()})
        return {"samples": self.seeds * BINS * run_steps(self) * self.batch}

    def _describe(self, runs: list[dict[str, Any]], history: np.ndarray) -> dict[str, Any]:
        return {
            "whole_run": summary(history.mean(1)),
            f"last_{WINDOW}": summary(history[:, -WINDOW:].mean(1)),
            "without_noise": summary([run["test"] for run in runs]),
            "curve": curve(history, WINDOW),
        }


def run_steps(task: Bandit) -> int:
    """Batches in each part of a run's history."""
    return task.samples // (task.batch * BINS)


class BanditRun:
    """One run in progress.

    Args:
        task: the task.
        learner: a key of ``LEARNERS``.
        seed: seed of samples and noise.
        net: the network.
    """

    def __init__(self, task: Bandit, learner: str, seed: int, net: kernels.Net):
        self.task, self.learner, self.seed, self.net = task, learner, seed, net
        self.rule = kernels.Rule(LEARNERS[learner], task.iterations, task.step)
        self.kernels = batch if task.batch >= batch.LEAST else kernels
        self.noise = Noise(seed, (task.batch, net.units.shape[2]), block=4)
        self.step, self.rewards, self._sum = 0, [], 0.0
        self.gradient = np.zeros(net.params.shape[1])

    def advance(self) -> None:
        """Train on one batch.

        Raises:
            TrainingCollapsed: the parameters are not finite; checked at the end of each part.
        """
        rng = np.random.Generator(np.random.PCG64(mix_seed(self.seed, 2, self.step)))
        x, target = self.task.sample(rng, self.task.batch)
        self.kernels.forward(self.net, x, self.noise(self.step))
        outputs = self.task.shape[1]
        reward = self.task.reward(self.net.units[kernels.VALUE, :, -outputs:], target)
        self.kernels.signals(self.net, x, self.rule, self.task.temperature is None and self.learner != "reinforce")
        self.gradient[:] = 0
        updates.accumulate(self.net, x, self.gradient, self.task.weights(self.net, self.learner, x, target, reward))
        self.step += 1
        updates.adam(self.net, self.gradient, self.step, 0)
        self._sum += float(reward.mean())
        if self.step % run_steps(self.task) == 0:
            self._close()

    def test(self) -> float:
        """Mean reward of the network without noise on test samples."""
        rng = np.random.Generator(np.random.PCG64(mix_seed(self.seed, 3)))
        x, target = self.task.sample(rng, TESTED)
        output = outputs_without_noise(self.net, x)
        if self.task.temperature is not None:
            output = (output == output.max(1, keepdims=True)).astype(float)
        return float(self.task.reward(output, target).mean())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the run's state, by name, for ``load``."""
        return {"params": torch.from_numpy(self.net.params.copy()), "rewards": torch.tensor(self.rewards, dtype=torch.float64)}

    def place(self) -> dict[str, Any]:
        """The rest of the run's state, as JSON values."""
        return {"step": self.step, "sum": self._sum}

    def load(self, tensors: dict[str, Tensor], place: dict[str, Any]) -> None:
        """Restore the state of ``tensors`` and ``place``."""
        self.net.params[...] = tensors["params"].numpy()
        self.rewards, self.step, self._sum = tensors["rewards"].tolist(), place["step"], place["sum"]

    def _close(self) -> None:
        if not np.isfinite(self.net.params[kernels.WEIGHT].sum()):
            raise TrainingCollapsed(
                f"the parameters are not finite after {self.step} batches: lower team.rates or raise its variances"
            )
        self.rewards.append(self._sum / run_steps(self.task))
        self._sum = 0.0


@dataclass(frozen=True, kw_only=True)
class Multiplexer(Bandit):
    """Return the one of 2^k data bits that k address bits select. Inputs are -1 and 1; the first address bit is the highest.

    Attributes:
        address_bits: k.
        softmax_temperature: temperature of the choice between the two outputs.
    """

    address_bits: int = 5
    softmax_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.address_bits <= 10:
            raise ValueError(f"address_bits is {self.address_bits}; it must lie between 1 and 10")
        positive(self, "softmax_temperature")

    @property
    def shape(self) -> tuple[int, int]:
        return self.address_bits + 2**self.address_bits, 2

    @property
    def temperature(self) -> float | None:
        return self.softmax_temperature

    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        bits, k = rng.integers(0, 2, (count, self.shape[0])), self.address_bits
        address = bits[:, :k] @ (1 << np.arange(k)[::-1])
        return 2.0 * bits - 1.0, bits[np.arange(count), k + address]

    def reward(self, output: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.where(output.argmax(1) == target, 1.0, -1.0)

    def weights(self, net: kernels.Net, learner: str, x: np.ndarray, target: np.ndarray, reward: np.ndarray) -> np.ndarray:
        return reward


@dataclass(frozen=True, kw_only=True)
class Regression(Bandit):
    """Regression of a fixed random network with two layers of ReLUs, 8-8-1 without biases.

    Attributes:
        inputs: number of normally distributed inputs.
        teacher_seed: seed of the fixed network's standard normal weights. The author used another random network.
    """

    inputs: int = 8
    teacher_seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.inputs, 1

    @property
    def temperature(self) -> float | None:
        return None

    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        weights = np.random.Generator(np.random.PCG64(mix_seed(self.teacher_seed, 4)))
        first, second = weights.standard_normal((self.inputs, self.inputs)), weights.standard_normal((self.inputs, 1))
        x = rng.standard_normal((count, self.inputs))
        return x, np.maximum(np.maximum(x @ first, 0) @ second, 0)[:, 0]

    def reward(self, output: np.ndarray, target: np.ndarray) -> np.ndarray:
        return -((output[:, 0] - target) ** 2)

    def weights(self, net: kernels.Net, learner: str, x: np.ndarray, target: np.ndarray, reward: np.ndarray) -> np.ndarray:
        if learner == "reinforce":
            return reward - self.reward(outputs_without_noise(net, x), target)
        return target - net.units[kernels.MEAN, :, -1]  # after relaxation, as in the author's code


def outputs_without_noise(net: kernels.Net, x: np.ndarray) -> np.ndarray:
    """Outputs (count, outputs) with every hidden unit at its mean: probabilities, or numbers."""
    quiet = deterministic(net, len(x))
    batch.forward(quiet, x, np.zeros((len(x), net.units.shape[2])))
    return quiet.units[kernels.MEAN, :, -int(net.sizes[-1]) :]
