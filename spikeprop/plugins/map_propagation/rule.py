"""``MAPPropagation``: classification by reward alone. The network answers, and all it is told is whether it was right.

The units of a plain multilayer network become stochastic while it trains: hidden ones normally distributed around their
activation, the answer drawn from the softmax of the scores. MAP propagation (``reference``) finds each unit's part in the answer;
gradients are -mean((reward - mean reward) * input * signal), so the optimiser climbs the expected reward. Outside of training the
network is what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.ann import MLP
from spikeprop.learn import LearningRule
from spikeprop.plugins.map_propagation.reference import Activation, StochasticNetwork, gradients

KINDS: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.Softplus: "softplus"}
LARGEST_STEP = 0.5  # of the relaxation, in units of a layer's variance: the paper's


@dataclass(frozen=True, kw_only=True)
class MAPPropagation(LearningRule):
    """Chung 2020 (arXiv:2010.07893) for classifiers: an ``MLP``, or a ``Sequential`` of linear layers, ReLU or softplus between.

    Attributes:
        variance: of the units of the last hidden layer.
        variance_ratio: of a layer's variance to that of the layer above.
        temperature: of the softmax from which the answer is drawn.
        iterations: of the relaxation, whose step is the paper's 0.5 or, for weights with which that would diverge, a smaller
            one. 0 iterations are REINFORCE on every unit.
        baseline: whether the batch's mean reward is taken off each reward, which is 1 for a right answer and 0 for a wrong one.
        rates: a learning rate for each linear layer; default the optimiser's for all.
    """

    variance: float = 0.1
    variance_ratio: float = 0.3
    temperature: float = 1.0
    iterations: int = 50
    baseline: bool = True
    rates: list[float] | None = None

    def __post_init__(self) -> None:
        for name in ("variance", "variance_ratio", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations}; it cannot be negative")

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        """Raises ValueError, saying why, where the network is none that this rule can train."""
        layers_of(model)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group a linear layer where ``rates`` are given."""
        if self.rates is None:
            return super().param_groups(model)
        linears, _ = layers_of(model)
        if len(self.rates) != len(linears):
            raise ValueError(f"rates has {len(self.rates)} numbers, the network has {len(linears)} linear layers")
        return [{"params": list(linear.parameters()), "lr": rate} for linear, rate in zip(linears, self.rates)]

    @torch.no_grad()
    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See ``LearningRule.step``. The loss is the cross-entropy of the noiseless scores; nothing descends on it.

        Returns:
            loss, scores, and the mean reward.
        """
        linears, activations = layers_of(model)
        team, x = self.team(linears, activations), x.flatten(1)
        noise = [torch.randn(len(x), linear.out_features, dtype=x.dtype, device=x.device) for linear in linears]
        values = team.relax(x, team.sample(x, noise), self.iterations, min(LARGEST_STEP, team.stable_step()))
        reward = (values[-1].argmax(1) == y).to(x)
        worth = reward - reward.mean() if self.baseline else reward
        signals = [signal * (-worth / len(x)).unsqueeze(1) for signal in team.signals(x, values)]
        for linear, (weight, bias) in zip(linears, gradients(x, values, signals)):
            linear.weight.grad = weight.mT.contiguous()
            if linear.bias is not None:
                linear.bias.grad = bias
        scores = model(x)
        return {"loss": F.cross_entropy(scores, y), "scores": scores, "reward": reward.mean()}

    def team(self, linears: list[nn.Linear], activations: list[Activation]) -> StochasticNetwork:
        """The network's layers as stochastic units; the weights are views."""
        return StochasticNetwork(
            weights=[linear.weight.mT for linear in linears],
            biases=[linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears],
            variances=[self.variance * self.variance_ratio ** (len(linears) - 2 - i) for i in range(len(linears))],
            temperature=self.temperature,
            activations=activations,
        )


def layers_of(model: nn.Module) -> tuple[list[nn.Linear], list[Activation]]:
    """Linear layers and the activations between them.

    Raises:
        ValueError: any other network, naming what is in the way.
    """
    sequence = model.layers if isinstance(model, MLP) else model
    linears: list[nn.Linear] = []
    activations: list[Activation] = []
    for name, module in _flat(sequence, ""):
        fits = len(activations) == len(linears)  # a linear layer is due
        if isinstance(module, nn.Linear) and fits:
            linears.append(module)
        elif type(module) in KINDS and not fits:
            activations.append(KINDS[type(module)])
        elif isinstance(module, nn.Dropout) and module.p > 0:
            raise ValueError(f"MAPPropagation: {name} is a dropout; set it to 0, the units are noisy by themselves")
        elif not (isinstance(module, nn.Dropout | nn.Identity) or (isinstance(module, nn.Flatten) and not linears)):
            raise ValueError(
                f"MAPPropagation cannot train {name} ({type(module).__name__}): it needs an MLP, or a Sequential of Linear "
                "layers with ReLU or Softplus between them"
            )
    if len(linears) != len(activations) + 1 or len(linears) < 2:
        raise ValueError(
            "MAPPropagation needs hidden units: at least two Linear layers with an activation between them, and none after"
        )
    return linears, activations


def _flat(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        for key, child in module.named_children():
            yield from _flat(child, f"{name}.{key}" if name else key)
    else:
        yield name or type(module).__name__, module
