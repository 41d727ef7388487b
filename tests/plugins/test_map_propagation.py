"""MAP propagation: its mathematics, the kernels compared with it, and the learning rule."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import CNN, MLP, Digits, ann_accuracy, fit
from spikeprop.plugins import MAPPropagation
from spikeprop.plugins.map_propagation import TeamSettings, kernels, updates
from spikeprop.plugins.map_propagation.network import LEARNERS, as_team, layers_of, make_net
from spikeprop.plugins.map_propagation.reference import StochasticNetwork, critic_factor, gradients
from spikeprop.plugins.map_propagation.statistics import curve
from spikeprop.plugins.map_propagation.step import actor_critic_step

needs_gymnasium = pytest.mark.skipif(
    find_spec("gymnasium") is None, reason="gymnasium is not installed: pip install 'spikeprop[rl]'"
)
needs_box2d = pytest.mark.skipif(find_spec("Box2D") is None, reason="Box2D is not installed: pip install 'spikeprop[rl]'")
SETTINGS = TeamSettings(
    variances=[0.03, 0.1, 0.2, 0.3], rates=[1e-2, 1e-3, 1e-3, 2e-3], final_rates=[1e-3, 1e-4, 1e-4, 1e-5], trace=0.9
)
SIZES = [3, 7, 6, 5]
PHASED = [name for name in LEARNERS if name != "asynchronous"]  # act, then learn


def net_of(learner: str, temperature: float | None, outputs: int, batch: int = 4, seed: int = 0) -> kernels.Net:
    return make_net([*SIZES, outputs], SETTINGS, learner=learner, seed=seed, batch=batch, temperature=temperature, discount=0.98)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_signals(
    team: StochasticNetwork, learner: str, x: Tensor, noise: Tensor, critic: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Values, signals and means of ``kernels.forward`` and ``kernels.signals``, from the reference."""
    split = list(noise.split([b.shape[-1] for b in team.biases], -1))
    if learner == "backprop":
        values = team.means(x)
        mean = values[-1]
        scale = team.temperature or team.variances[-1]
        drawn = mean + team.variances[-1] ** 0.5 * split[-1] if team.temperature is None else one_hot(mean, split[-1])
        signals = team.backpropagated(x, torch.ones_like(mean) if critic else (drawn - mean) / scale)
        return [*values[:-1], drawn], signals, values
    values = team.sample(x, split)
    if learner == "stochastic":
        return (
            values,
            reparametrised(team, x, split, values[-1], critic),
            [team.mean(i, b) for i, b in enumerate([x, *values[:-1]])],
        )
    if learner == "map":
        values = team.relax(x, values, 20, 0.3)
    means = [team.mean(i, below) for i, below in enumerate([x, *values[:-1]])]
    factor = torch.ones_like(x[..., :1])
    if critic:
        baseline = team.means(x)[-1]
        factor = critic_factor(values[-1], means[-1], team.variances[-1]) if learner == "map" else values[-1] - baseline
    return values, [signal * factor for signal in team.signals(x, values)], means


def reparametrised(team: StochasticNetwork, x: Tensor, noise: list[Tensor], action: Tensor, critic: bool) -> list[Tensor]:
    """Autograd's signals through the sampled hidden units: of the mean output, or of the action's log probability."""
    below, potentials = x, []
    for layer, (weight, bias) in enumerate(zip(team.weights, team.biases)):
        potentials.append((below @ weight + bias).requires_grad_())
        if layer < team.hidden:
            below = F.softplus(potentials[-1]) + team.variances[layer] ** 0.5 * noise[layer]
    output = potentials[-1]
    if critic:
        objective = output.sum()
    elif team.temperature is None:
        objective = -(action - output).square().sum() / (2 * team.variances[-1])
    else:
        objective = (action * torch.log_softmax(output / team.temperature, -1)).sum()
    return list(torch.autograd.grad(objective, potentials))


def one_hot(probabilities: Tensor, noise: Tensor) -> Tensor:
    uniform = torch.special.ndtr(noise[..., :1])
    return F.one_hot((uniform >= probabilities.cumsum(-1)[..., :-1]).sum(-1), probabilities.shape[-1]).to(probabilities)


# the mathematics --------------------------------------------------------------------------------------------------------------


def test_a_net_of_two_units_by_hand() -> None:
    """One input, one hidden unit, one Gaussian output, one iteration, two steps of the trace, by hand."""
    team = TeamSettings(variances=[0.5, 0.25], rates=[0.1, 0.1], trace=0.5)
    net = make_net([1, 1, 1], team, learner="map", seed=0, batch=1, temperature=None, discount=0.8)
    w1, b1, w2, b2 = 0.3, -0.2, 1.5, 0.1
    net.params[kernels.WEIGHT] = [w1, b1, w2, b2]
    trace = np.zeros(4)
    for x, drawn1, drawn2 in ((2.0, 0.7, -1.1), (-1.0, 0.2, 0.4)):
        potential = w1 * x + b1
        mu, slope = math.log1p(math.exp(potential)), 1 / (1 + math.exp(-potential))
        h = mu + math.sqrt(0.5) * drawn1
        action = w2 * h + b2 + math.sqrt(0.25) * drawn2
        h += 0.4 * 0.5 * ((mu - h) / 0.5 + w2 * (action - w2 * h - b2) / 0.25)
        e1, e2 = (h - mu) * slope / 0.5, (action - w2 * h - b2) / 0.25
        trace = 0.8 * 0.5 * trace + np.array([x * e1, e1, h * e2, e2])
        states = np.array([[x]])
        kernels.forward(net, states, np.array([[drawn1, drawn2]]))
        kernels.signals(net, states, kernels.Rule(kernels.MAP, 1, 0.4), False)
        updates.update_trace(net, states, np.array([False]))
        np.testing.assert_allclose(net.trace[0], trace, rtol=1e-12)


@pytest.mark.parametrize("temperature", [2.0, None], ids=["softmax", "gaussian"])
def test_without_noise_and_with_many_iterations_the_gradient_is_backpropagations(temperature: float | None) -> None:
    torch.manual_seed(0)
    sizes = [6, 64, 32, 3]
    weights = [torch.randn(n, k, dtype=torch.float64) / n**0.5 for n, k in pairwise(sizes)]
    biases = [0.1 * torch.randn(k, dtype=torch.float64) for k in sizes[1:]]
    for parameter in (*weights, *biases):
        parameter.requires_grad_()
    hidden = [3e-7, 1e-6]
    team = StochasticNetwork(weights=weights, biases=biases, variances=[*hidden, 0.1], temperature=temperature)
    x = torch.randn(16, 6, dtype=torch.float64)
    noise = [torch.randn(16, k, dtype=torch.float64) for k in sizes[1:]]
    with torch.no_grad():
        values = team.relax(x, team.sample(x, noise), 400, 0.5)
        found = gradients(x, values, team.signals(x, values))
    mean = team.means(x)[-1]
    score = (values[-1] * mean.log()).sum() if temperature else -(values[-1] - mean).square().sum() / (2 * 0.1)
    score.backward()
    for (weight, bias), w, b in zip(found, weights, biases):
        assert w.grad is not None
        assert b.grad is not None
        assert torch.cosine_similarity(weight.flatten(), w.grad.flatten(), 0) > 0.9999
        assert torch.cosine_similarity(bias, b.grad, 0) > 0.9999
        assert abs(weight.norm() / w.grad.norm() - 1) < 1e-3


def test_the_critic_follows_the_gradient_of_its_mean_in_the_same_limit() -> None:
    team = as_team(net_of("map", None, 1))
    exact = StochasticNetwork(weights=team.weights, biases=team.biases, variances=[1e-7, 1e-7, 1e-7, 0.3])
    x, noise = draws(1, 3), [draws(1, b.shape[0], seed=9) for b in team.biases]
    values = exact.relax(x, exact.sample(x, noise), 500, 0.3)
    mean = exact.mean(3, values[-2])
    found = [s * critic_factor(values[-1], mean, 0.3) * 0.3 for s in exact.signals(x, values)]
    for signal, right in zip(found, exact.backpropagated(x, torch.ones(1, 1, dtype=torch.float64))):
        torch.testing.assert_close(signal, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, None], ids=["softmax", "gaussian"])
def test_without_relaxation_the_signals_are_scores(temperature: float | None) -> None:
    """REINFORCE's estimator: the gradient of log p(all values | x), by autograd; so the energy is -log p."""
    team = as_team(net_of("reinforce", temperature, 2))
    for parameter in (*team.weights, *team.biases):
        parameter.requires_grad_()
    x = draws(4, 3)
    with torch.no_grad():
        values = team.sample(x, [draws(4, b.shape[0], seed=i) for i, b in enumerate(team.biases)])
        found = gradients(x, values, team.signals(x, values))
    (-team.energy(x, values)).sum().backward()
    for (weight, bias), w, b in zip(found, team.weights, team.biases):
        torch.testing.assert_close(weight, w.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(bias, b.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["weights as they begin", "three times as large"])
@pytest.mark.parametrize("temperature", [1.0, None], ids=["softmax", "gaussian"])
def test_the_energy_falls_at_every_iteration(temperature: float | None, scale: float) -> None:
    """With the stable step. With the paper's 0.5 the energy of the larger weights diverges."""
    begun = as_team(net_of("map", temperature, 3))
    weights = [w * scale for w in begun.weights]
    team = StochasticNetwork(weights=weights, biases=begun.biases, variances=[0.1, 0.1, 0.1, 0.1], temperature=temperature)
    x = draws(8, 3)
    values = team.sample(x, [draws(8, b.shape[0], seed=i) for i, b in enumerate(team.biases)])
    energies = [team.energy(x, team.relax(x, values, n, team.stable_step())) for n in range(12)]
    assert all((after < before).all() for before, after in pairwise(energies))
    if scale > 1:
        wild = team.energy(x, team.relax(x, values, 30, 0.5))
        assert (wild > energies[0]).any()


# the kernels ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "critic"), [(2.0, False), (None, False), (None, True)], ids=["softmax", "gaussian", "critic"]
)
@pytest.mark.parametrize("learner", PHASED)
def test_kernels_equal_the_reference(learner: str, temperature: float | None, critic: bool) -> None:
    net = net_of(learner, temperature, 1 if critic else 3)
    x, noise = draws(4, 3, seed=1), draws(4, net.units.shape[2], seed=2)
    kernels.forward(net, x.numpy(), noise.numpy())
    kernels.signals(net, x.numpy(), kernels.Rule(LEARNERS[learner], 20, 0.3), critic)
    values, signals, means = plain_signals(as_team(net), learner, x, noise, critic)
    for kernel_row, plain in ((kernels.MEAN, means), (kernels.VALUE, values), (kernels.ERROR, signals)):
        for ours, theirs in zip(layers_of(net, kernel_row), plain):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("learner", PHASED)
def test_steps_of_actor_and_critic_equal_plain_ones(learner: str) -> None:
    """Traces, temporal differences, ends of episodes, annealed rates: 12 steps of 2 environments, against torch's Adam."""
    nets = [net_of(learner, None, 1, batch=2, seed=1), net_of(learner, 2.0, 3, batch=2, seed=2)]
    plain = [_Plain(net, learner, critic=not i) for i, net in enumerate(nets)]
    rule, value = kernels.Rule(LEARNERS[learner], 20, 0.3, 0.98, 8), np.zeros(2)
    before = torch.zeros(2, dtype=torch.float64)
    rng = np.random.default_rng(0)
    ended, truncated, started = np.zeros(2, bool), np.zeros(2, bool), np.ones(2, bool)
    for t in range(12):
        x, reward = rng.standard_normal((2, 3)), rng.standard_normal(2)
        noise = rng.standard_normal((2, sum(net.units.shape[2] for net in nets)))
        actor_critic_step(nets[0], rule, nets[1], rule, x, noise, reward, ended, truncated, started, value, t)
        parts = torch.from_numpy(noise).split([net.units.shape[2] for net in nets], -1)
        now = plain[0].mean_output(torch.from_numpy(x), parts[0])
        delta = torch.from_numpy(reward) + 0.98 * now * torch.from_numpy(~ended) - before
        delta[torch.from_numpy(started | truncated)] = 0
        before = now
        for side, part in zip(plain, parts):
            side.step(torch.from_numpy(x), part, delta, torch.from_numpy(started), t)
        started = ended  # as in an environment: the step after an end starts a new episode
        ended, truncated = np.array([t in (3, 8), t == 5]), np.array([t == 8, False])
        for net, side in zip(nets, plain):
            np.testing.assert_allclose(net.params[kernels.WEIGHT], side.flat(), rtol=1e-10, atol=1e-11)
    assert value.tolist() == pytest.approx(before.tolist(), rel=1e-10)


class _Plain:
    """One network learning in plain torch: reference, traces as lists of tensors, torch's Adam."""

    def __init__(self, net: kernels.Net, learner: str, critic: bool):
        self.learner, self.critic, self.decay = learner, critic, net.decay
        self.team = as_team(net)
        self.parameters = [p for pair in zip(self.team.weights, self.team.biases) for p in pair]
        groups = [{"params": list(pair), "lr": 0.0} for pair in zip(self.team.weights, self.team.biases)]
        self.optimizer = torch.optim.Adam(groups, maximize=True)
        self.traces = [[torch.zeros_like(p) for p in self.parameters] for _ in range(2)]
        self.values: list[Tensor] = []

    def flat(self) -> np.ndarray:
        return torch.cat([p.flatten() for p in self.parameters]).numpy()

    def mean_output(self, x: Tensor, noise: Tensor) -> Tensor:
        split = noise.split([b.shape[0] for b in self.team.biases], -1)
        values = self.team.means(x) if self.learner == "backprop" else self.team.sample(x, split)
        return self.team.mean(self.team.hidden, values[-2])[:, 0]

    def step(self, x: Tensor, noise: Tensor, delta: Tensor, started: Tensor, t: int) -> None:
        split = list(noise.split([b.shape[0] for b in self.team.biases], -1))
        drawn = self.team.sample(x, split)  # before the update: the action used the old parameters
        means = self.team.means(x)
        stale = [self.team.mean(i, below) for i, below in enumerate([x, *drawn[:-1]])]
        if t > 0:
            for number, group in enumerate(self.optimizer.param_groups):
                start, end = SETTINGS.rates[number], (SETTINGS.final_rates or [])[number]
                group["lr"] = start + min(t / 8, 1) * (end - start)
            for i, parameter in enumerate(self.parameters):
                parameter.grad = sum((delta[e] * self.traces[e][i] for e in range(2)), torch.zeros(())) / 2
            self.optimizer.step()
        signals, values = self._signals(x, drawn, means, stale, split)
        for e in range(2):
            found = gradients(x[e : e + 1], [v[e : e + 1] for v in values], [s[e : e + 1] for s in signals])
            keep = 0.0 if started[e] else self.decay
            self.traces[e] = [keep * old + new for old, new in zip(self.traces[e], [g for pair in found for g in pair])]

    def _signals(
        self, x: Tensor, drawn: list[Tensor], means: list[Tensor], stale: list[Tensor], split: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As in the author's code: values, means and slopes are those of the action, the weights are already updated."""
        team = self.team
        if self.learner in ("backprop", "stochastic"):
            means = stale if self.learner == "stochastic" else means
            hidden = drawn[:-1] if self.learner == "stochastic" else means[:-1]
            action = (
                means[-1] + team.variances[-1] ** 0.5 * split[-1] if team.temperature is None else one_hot(means[-1], split[-1])
            )
            scale = team.temperature or team.variances[-1]
            signal = torch.ones_like(means[-1]) if self.critic else (action - means[-1]) / scale
            signals = [signal]
            for layer in reversed(range(team.hidden)):
                slope = 1 - torch.exp(-means[layer])  # of the softplus, from its value
                signals.insert(0, slope * (signals[0] @ team.weights[layer + 1].mT))
            return signals, [*hidden, action]
        scales = [*team.variances[:-1], team.temperature or team.variances[-1]]

        def scores(values: list[Tensor], around: list[Tensor]) -> list[Tensor]:
            slopes = [1 - torch.exp(-m) for m in around[:-1]] + [torch.ones_like(around[-1])]
            return [(v - m) * slope / scale for v, m, slope, scale in zip(values, around, slopes, scales)]

        values, around, factor = drawn, stale, torch.ones_like(x[:, :1])
        for _ in range(20 if self.learner == "map" else 0):
            errors = scores(values, around)
            moved = [
                v + 0.3 * (m - v + variance * (error @ above.mT))
                for v, m, variance, error, above in zip(values, around, team.variances, errors[1:], team.weights[1:])
            ]
            values = [*moved, values[-1]]
            around = [stale[0], *(team.mean(i, values[i - 1]) for i in range(1, len(values)))]
        if self.critic and self.learner == "map":
            factor = critic_factor(values[-1], around[-1], team.variances[-1])
        elif self.critic:
            factor = values[-1] - team.means(x)[-1]
        return [s * factor for s in scores(values, around)], values


# statistics -------------------------------------------------------------------------------------------------------------------


def test_curves_are_running_means() -> None:
    found = curve(np.array([[0.0, 2, 4, 6], [2, 4, 6, 8]]), window=2)
    assert found["at"] == [2, 3, 4]
    assert found["mean"] == [2, 4, 6]


# the rule ---------------------------------------------------------------------------------------------------------------------


def classifier() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Flatten(), nn.Linear(64, 24), nn.Softplus(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10, bias=False)]
    return nn.Sequential(*layers).double()


def test_the_rules_gradient_is_that_of_the_expected_reward_when_noise_vanishes() -> None:
    model, x, y = classifier(), draws(32, 1, 8, 8), torch.arange(32) % 10
    rule = MAPPropagation(variance=1e-7, iterations=600, temperature=1.5)
    torch.manual_seed(7)
    result = rule.step(model, x, y)
    found = {name: p.grad for name, p in model.named_parameters()}
    torch.manual_seed(7)
    noise = [torch.randn(32, width, dtype=torch.float64) for width in (24, 16, 10)]
    model.zero_grad()
    scores = model(x) / 1.5
    action = one_hot(scores.softmax(1).detach(), noise[-1]).argmax(1)
    reward = (action == y).double()
    (F.cross_entropy(scores, action, reduction="none") * (reward - reward.mean())).mean().backward()
    assert result["reward"] == reward.mean()
    for name, parameter in model.named_parameters():
        gradient = found[name]
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.cosine_similarity(gradient.flatten(), parameter.grad.flatten(), 0) > 0.9999, name


def test_digits_are_learnt_from_reward_alone() -> None:
    torch.manual_seed(0)
    ann = MLP(input_shape=(1, 8, 8), classes=10, hidden=[64, 32], dropout=0.0)
    data, rule = Digits(), MAPPropagation(variance=0.01)
    history = fit(ann, rule, data.train(32, seed=0), torch.optim.Adam(rule.param_groups(ann), lr=3e-3), epochs=6)
    assert history[0]["reward"] < history[-1]["reward"]
    assert ann_accuracy(ann, data.test(100).epoch(0)) > 30  # chance: 10


def test_rates_by_layer() -> None:
    model = classifier()
    groups = MAPPropagation(rates=[1e-2, 1e-4, 1e-5]).param_groups(model)
    assert [group["lr"] for group in groups] == [1e-2, 1e-4, 1e-5]
    assert [len(group["params"]) for group in groups] == [2, 2, 1]
    with pytest.raises(ValueError, match="rates has 1 numbers, the network has 3 linear layers"):
        MAPPropagation(rates=[1.0]).param_groups(model)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (MLP(input_shape=(1, 8, 8), classes=10, hidden=[8], dropout=0.2), "is a dropout; set it to 0"),
        (CNN(input_shape=(1, 8, 8), classes=10, plan=[4, "A"], hidden=[8]), r"cannot train CNN \(CNN\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), r"cannot train 1 \(Tanh\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), r"cannot train 1 \(Linear\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "at least two Linear layers"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()), "but not at the end"),
    ],
    ids=["dropout", "convolutions", "tanh", "no activation", "no hidden layer", "activated output"],
)
def test_unsupported_networks_are_refused_with_the_reason(model: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MAPPropagation().prepare(model, torch.zeros(1, 4))
