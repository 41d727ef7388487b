"""MAP propagation's other learners and faster forms: each against an independent computation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import ttest_ind
from torch import Tensor
from torch.nn import functional as F

from spikeprop.cli import main
from spikeprop.errors import RecipeError
from spikeprop.plugins.map_propagation import TeamSettings, asynchronous, batch, kernels, published
from spikeprop.plugins.map_propagation.network import LEARNERS, as_team, make_net
from spikeprop.plugins.map_propagation.reference import StochasticNetwork, critic_factor, gradients
from spikeprop.plugins.map_propagation.tuning import LearnerSettings, TeamChanges, Tuned
from spikeprop.plugins.map_propagation.vector import VectorEnvironments
from spikeprop.recipe import load_recipe
from tests.forked import ROOT
from tests.plugins.test_map_propagation import PHASED, draws, net_of
from tests.plugins.test_map_tasks import control, small_multiplexer

gymnasium = pytest.importorskip("gymnasium")


@pytest.mark.parametrize(
    ("temperature", "critic"), [(2.0, False), (None, False), (None, True)], ids=["softmax", "gaussian", "critic"]
)
@pytest.mark.parametrize("learner", PHASED)
def test_batches_equal_the_kernels(learner: str, temperature: float | None, critic: bool) -> None:
    rule = kernels.Rule(LEARNERS[learner], 20, 0.3)
    nets = [net_of(learner, temperature, 1 if critic else 3, batch=20) for _ in range(2)]
    x, noise = draws(20, 3, seed=1).numpy(), draws(20, nets[0].units.shape[2], seed=2).numpy()
    for net, module in zip(nets, (kernels, batch)):
        module.forward(net, x, noise)
        module.signals(net, x, rule, critic)
    np.testing.assert_allclose(nets[1].units, nets[0].units, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_runs_of_batches_equal_those_of_single_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_allclose(weights_after_some_steps(), weights_after_some_steps(monkeypatch, least=10**6), atol=1e-9)


@pytest.mark.slow
def test_single_precision_is_double_to_rounding() -> None:
    found = weights_after_some_steps(precision="single")
    np.testing.assert_allclose(found, weights_after_some_steps(), atol=2e-3)
    assert found.dtype == np.float32


def weights_after_some_steps(patch: pytest.MonkeyPatch | None = None, least: int = 0, precision: str = "double") -> np.ndarray:
    if patch:
        patch.setattr(batch, "LEAST", least)
    run = control(environments=16, precision=precision).start("map", 0)
    for _ in range(12):
        run.advance()
    return run.actor.params[kernels.WEIGHT]


@pytest.mark.parametrize("learner", ["backprop", "map"])
def test_entropy_signals_are_autograds(learner: str) -> None:
    """Backprop follows the policy's entropy through all layers, MAP propagation in the output layer only."""
    net = net_of(learner, 2.0, 3, batch=1)
    x, noise = draws(1, 3), draws(1, net.units.shape[2], seed=3)
    kernels.forward(net, x.numpy(), noise.numpy())
    values = [v.clone() for v in torch.from_numpy(net.units[kernels.VALUE].copy()).split([7, 6, 5, 3], -1)]
    kernels.entropy_signals(net, 0, LEARNERS[learner])
    team, potentials, below = as_team(net), [], x
    for layer, (weight, bias) in enumerate(zip(team.weights, team.biases)):
        potentials.append((below @ weight + bias).requires_grad_())
        below = F.softplus(potentials[-1]) if learner == "backprop" else values[layer]
    policy = torch.softmax(potentials[-1] / 2.0, -1)
    entropy = -(policy * policy.log()).sum()
    expected = torch.autograd.grad(entropy, potentials, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(torch.from_numpy(net.units[kernels.ERROR]), torch.cat(expected, -1))


def test_a_bonus_keeps_the_policy_random() -> None:
    spread = []
    for entropy in (0.0, 50.0):
        own = LearnerSettings(entropy=entropy, actor=TeamChanges(rates=[1e-2, 1e-2, 1e-1]))
        run = control(tuned=Tuned(reinforce=own)).start("reinforce", 0)
        for _ in range(300):
            run.advance()
        policy = run.actor.units[kernels.MEAN, 0, -2:]
        spread.append(-float((policy * np.log(policy + 1e-300)).sum()))
    assert spread[1] > 0.99 * math.log(2) > spread[0] + 0.01


def test_a_learner_has_its_own_rates_and_critic() -> None:
    own = LearnerSettings(critic_learner="backprop", temperature=3.0, actor=TeamChanges(rates=[3e-4, 3e-4, 1e-2]))
    annealed = TeamSettings(variances=[0.03, 0.1, 0.1], rates=[1e-2, 1e-5, 1e-6], final_rates=[1e-3, 1e-6, 1e-7])
    experiment = control(actor=annealed, critic=annealed, tuned=Tuned(reinforce=own))
    shared, changed = experiment.start("map", 0), experiment.start("reinforce", 0)
    assert (shared.critic_rule.learner, changed.critic_rule.learner) == (kernels.MAP, kernels.BACKPROP)
    assert changed.actor_rule.learner == kernels.REINFORCE
    assert not changed.critic.layers[:-1, kernels.DEVIATION].any()
    for column in (kernels.RATE, kernels.FINAL_RATE):  # own rates are constant unless own final rates are given
        assert changed.actor.layers[:, column].tolist() == [3e-4, 3e-4, 1e-2]
    assert changed.critic.layers[:, kernels.FINAL_RATE].tolist() == annealed.final_rates
    assert (shared.actor.temperature, changed.actor.temperature) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tuned.map.actor.rates=[1e-2]", r"tuned\.map\.actor\.rates has 1 numbers for 3 layers"),
        ("tuned.map.entropy=-1", "entropy"),
        ("tuned.mapp.entropy=1", "mapp"),
        ("tuned.reinforce.critic_learner=td", "critic_learner"),
    ],
)
def test_invalid_own_settings_are_refused(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("map_cartpole", [override])


def test_entropy_of_continuous_actions_is_refused() -> None:
    tuned = Tuned(backprop=LearnerSettings(entropy=0.1))
    experiment = control(environment="MountainCarContinuous-v0", tuned=tuned, learners=["backprop"])
    with pytest.raises(RecipeError, match=r"tuned\.backprop\.entropy: .* continuous actions"):
        experiment.check()


def test_asynchronous_needs_time() -> None:
    with pytest.raises(ValueError, match="asynchronous needs a task with time"):
        small_multiplexer(learners=["asynchronous"])
    with pytest.raises(ValueError, match="iterations is 0, and the asynchronous learner draws its action in them"):
        control(iterations=0, learners=["asynchronous"])


@pytest.mark.slow
@pytest.mark.parametrize("critic", [False, True], ids=["softmax", "critic"])
def test_asynchronous_phases_equal_plain_ones(critic: bool) -> None:
    """Algorithm 3 of the draft in plain torch: an episode's first state, then another state."""
    settings = TeamSettings(variances=[0.3, 0.4, 0.5], rates=[0.1] * 3, trace=0.9)
    outputs = 1 if critic else 3
    net = make_net(
        [2, 5, 4, outputs], settings, learner="asynchronous", seed=1, batch=1, temperature=None if critic else 1.5, discount=0.8
    )
    rule, team = kernels.Rule(kernels.ASYNCHRONOUS, 3, 0.2), as_team(net)
    state = [torch.zeros(1, k, dtype=torch.float64) for k in (5, 4, outputs)]
    plain = _Asynchronous(team, state, decay=(0.8 * 0.9) ** (1 / 6), critic=critic)
    for t in range(2):
        x, noise = draws(1, 2, seed=t), draws(1, 3 * outputs, seed=10 + t)
        asynchronous.act(net, rule, x.numpy(), noise.numpy(), np.array([t == 0]), critic)
        asynchronous.rest(net, rule, x.numpy(), noise.numpy(), critic)
        plain.phase(x, list(noise.split(outputs, -1)))
        plain.phase(x, [None] * 3)
        np.testing.assert_allclose(net.units[kernels.VALUE], torch.cat(plain.values, -1), rtol=1e-9)
        np.testing.assert_allclose(net.units[kernels.VELOCITY], torch.cat(plain.velocity, -1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(net.trace[0], torch.cat([p.flatten() for p in plain.trace]), rtol=1e-7)


class _Asynchronous:
    def __init__(self, team: StochasticNetwork, values: list[Tensor], decay: float, critic: bool):
        self.team, self.values, self.decay, self.critic = team, values, decay, critic
        self.velocity = [torch.zeros_like(v) for v in values]
        self.trace = [torch.zeros_like(p) for pair in zip(team.weights, team.biases) for p in pair]

    def phase(self, x: Tensor, noise: list[Any]) -> None:
        for drawn in noise:
            moved = self.team.relax(x, self.values, 1, 0.2)
            if drawn is not None:
                mean = self.team.mean(2, self.values[1])
                moved[2] = mean + 0.5**0.5 * drawn if self.critic else self._choice(mean, drawn)
            change = [new - old for new, old in zip(moved, self.values)]
            if not self.critic:
                change[2] = torch.full_like(change[2], float(change[2].any()))
            self.velocity = [0.7 * g + 0.3 * dh for g, dh in zip(self.velocity, change)]
            self.values = moved
            factor = critic_factor(moved[2], self.team.mean(2, moved[1]), 0.5) if self.critic else 1.0
            signals = [s * factor / (1e-5 + 1e3 * g**2) for s, g in zip(self.team.signals(x, moved), self.velocity)]
            found = [g for pair in gradients(x, moved, signals) for g in pair]
            self.trace = [self.decay * z + g for z, g in zip(self.trace, found)]

    @staticmethod
    def _choice(mean: Tensor, drawn: Tensor) -> Tensor:
        index = (torch.special.ndtr(drawn[..., :1]) >= mean.cumsum(-1)[..., :-1]).sum(-1)
        return F.one_hot(index, mean.shape[-1]).to(mean)


@pytest.mark.slow
def test_asynchronous_run_resumes() -> None:
    whole, first, second = (control(learners=["asynchronous"]).start("asynchronous", 0) for _ in range(3))
    for step in range(40):
        whole.advance()
        if step < 17:
            first.advance()
    second.load(first.tensors(), json.loads(json.dumps(first.place())))
    while second.step < 40:
        second.advance()
    assert np.array_equal(second.actor.params, whole.actor.params)


def test_published_figures_are_compared_by_welch() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 3, 7), rng.normal(2, 1, published.RUNS)
    found = published.welch(ours.tolist(), float(theirs.mean()), float(theirs.std()))
    assert found == pytest.approx(ttest_ind(ours, theirs, equal_var=False).pvalue, rel=1e-9)
    assert published.welch([1.0], 0.0, 1.0) is None
    report = json.loads((ROOT / "results/map_acrobot/report.json").read_text())
    runs = {"map": report["learners"]["map"]["whole_run"]["by_seed"]}
    compared = published.compared("Acrobot-v1", 500, runs)
    assert not published.compared("Acrobot-v1", 4, runs)  # means over other episodes
    text = published.in_words(compared["map"])
    assert re.fullmatch(r"   published -100\.29 \(sd 5\.40, p 0\.04\d\); draft -119\.47 \(sd 18\.50, p 0\.6\d\)", text)


# vectorised environments ------------------------------------------------------------------------------------------------------


def test_vectorised_run_resumes_and_starts_episodes_like_others() -> None:
    experiment = control(environments=16, vector=True)
    whole, first, second = (experiment.start("backprop", 3) for _ in range(3))
    assert isinstance(whole.environments, VectorEnvironments)
    ends = 0
    for step in range(60):
        ended, started = whole.environments.ended.copy(), whole.environments.started.copy()
        whole.advance()
        assert step == 0 or (whole.environments.started == ended).all()
        assert not (whole.environments.started & started).any()
        assert not whole.environments.reward[whole.environments.started].any()
        ends += int(whole.environments.ended.sum())
        if step < 31:
            first.advance()
    assert ends == len(whole.returns) > 10
    assert min(whole.returns) > 5
    second.load(first.tensors(), json.loads(json.dumps(first.place())))
    while second.step < 60:
        second.advance()
    assert second.returns == whole.returns
    assert np.array_equal(second.environments.x, whole.environments.x)
    assert np.array_equal(second.actor.params, whole.actor.params)


def test_vectorised_environments_without_one_array_of_observations_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"observations of FrozenLake-v1 are of type Discrete.*FlattenObservation"):
        control(environment="FrozenLake-v1", vector=True).check()


# an environment of one's own --------------------------------------------------------------------------------------------------


def test_the_pages_own_environment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/plugins/map-propagation.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    command = re.findall(r"\$ spikeprop (run map_cartpole environment=own\S+.*)", page)[0].split()
    (tmp_path / "own_environment.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = CliRunner().invoke(main, [*command, "learners=[map]", "seeds=1", "--smoke", "--out", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r/report.json").read_text())["environment"].startswith("own_environment:")


def test_a_missing_module_of_an_environment_is_named() -> None:
    with pytest.raises(RecipeError, match="module of 'no_such_module:X-v0' cannot be imported"):
        control(environment="no_such_module:X-v0").check()
