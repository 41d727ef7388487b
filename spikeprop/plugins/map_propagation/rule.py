"""``MAPPropagation``: a learning rule for classification by reward alone; the reward says only whether the prediction is correct.

During training, the units of a plain multilayer network become stochastic: hidden units are normally distributed around their
activation, and the prediction is drawn from the softmax of the scores. MAP propagation (``reference``) computes each unit's
signal; gradients are -mean((reward - mean reward) * input * signal), so the optimiser maximises the expected reward. Outside of
training the network is deterministic.
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
from spikeprop.runtime.checks import not_negative, positive
from spikeprop.runtime.labels import read_labels

KINDS: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.Softplus: "softplus"}
LARGEST_STEP = 0.5  # step of the relaxation in the paper, relative to a layer's variance


@dataclass(frozen=True, kw_only=True)
class MAPPropagation(LearningRule):
    """MAP propagation (Chung 2020, arXiv:2010.07893) for an ``MLP``, or a ``Sequential`` of linear layers with ReLU or softplus.

    Attributes:
        variance: variance of the units of the last hidden layer.
        variance_ratio: ratio of a layer's variance to that of the next layer.
        temperature: temperature of the softmax from which the prediction is drawn.
        iterations: iterations of the relaxation; its step is the paper's 0.5, or smaller if that would diverge. 0 iterations are
            REINFORCE on every unit.
        baseline: subtract the batch's mean reward from each reward, which is 1 for a correct prediction and 0 otherwise.
        rates: a learning rate per linear layer; default: the optimiser's rate.
    """

    variance: float = 0.1
    variance_ratio: float = 0.3
    temperature: float = 1.0
    iterations: int = 50
    baseline: bool = True
    rates: list[float] | None = None

    def __post_init__(self) -> None:
        positive(self, "variance", "variance_ratio", "temperature")
        not_negative(self, "iterations")

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        """Raises ValueError with the reason if this rule cannot train the network."""
        layers_of(model)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group per linear layer if ``rates`` are given."""
        if self.rates is None:
            return super().param_groups(model)
        linears, _ = layers_of(model)
        if len(self.rates) != len(linears):
            raise ValueError(f"rates has {len(self.rates)} numbers, the network has {len(linears)} linear layers")
        return [{"params": list(linear.parameters()), "lr": rate} for linear, rate in zip(linears, self.rates)]

    @torch.no_grad()
    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See ``LearningRule.step``. The loss is the cross-entropy of the noiseless scores, for information only.

        Returns:
            loss, scores, and the mean reward.
        """
        linears, activations = layers_of(model)
        team, x = self.team(linears, activations), x.flatten(1)
        noise = [torch.randn(len(x), linear.out_features, dtype=x.dtype, device=x.device) for linear in linears]
        values = team.relax(x, team.sample(x, noise), self.iterations, min(LARGEST_STEP, team.stable_step()))
        y = read_labels(values[-1], y, ignorable=False).classes()
        reward = (values[-1].argmax(1) == y).to(x)
        advantage = reward - reward.mean() if self.baseline else reward
        signals = [signal * (-advantage / len(x)).unsqueeze(1) for signal in team.signals(x, values)]
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
        ValueError: the network has another module; the message names it.
    """
    sequence = model.layers if isinstance(model, MLP) else model
    linears: list[nn.Linear] = []
    activations: list[Activation] = []
    for name, module in _flat(sequence, ""):
        fits = len(activations) == len(linears)  # a linear layer is expected
        if isinstance(module, nn.Linear) and fits:
            linears.append(module)
        elif type(module) in KINDS and not fits:
            activations.append(KINDS[type(module)])
        elif isinstance(module, nn.Dropout) and module.p > 0:
            raise ValueError(f"MAPPropagation: {name} is a dropout; set it to 0, because the units are already noisy")
        elif not (isinstance(module, nn.Dropout | nn.Identity) or (isinstance(module, nn.Flatten) and not linears)):
            raise ValueError(
                f"MAPPropagation cannot train {name} ({type(module).__name__}): it needs an MLP, or a Sequential of Linear "
                "layers with ReLU or Softplus between them"
            )
    if len(linears) != len(activations) + 1 or len(linears) < 2:
        raise ValueError(
            "MAPPropagation needs hidden units: at least two Linear layers with an activation between them, but not at the end"
        )
    return linears, activations


def _flat(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        for key, child in module.named_children():
            yield from _flat(child, f"{name}.{key}" if name else key)
    else:
        yield name or type(module).__name__, module
