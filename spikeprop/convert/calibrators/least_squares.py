"""Least squares: each layer's weights are fitted to the ANN's activation on the rates that its sources really send.

With x those rates, seen by the kernel at one position and completed by a 1 for the bias, z = W x + c the current (c of branches
that are not fitted), o = theta r(z/theta) what the neuron sends of it, r the staircase of ``least_error.quantised``, a the ANN's
activation, and m = 1 where z lies on the staircase's ramp, else 0, a step is

    W <- W + (sum m (a - o) x') (sum x x' + lambda I)^-1

the Gauss-Newton step of sum (a - ramp(z))^2 with all of x x' in the place of those where m = 1, which is inverted once for all
channels and only makes the step smaller. A few steps do what gradient descent needs hundreds for (``AdvancedCalibration``). It
is the layer-wise reconstruction of post-training quantisation (Nagel et al. 2020, "Up or down?"; Li et al. 2021), solved in
closed form as in Frantar & Alistarh 2022 ("Optimal brain compression"). Suffix legend: N positions, G groups, K inputs and the
1, O outputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from spikeprop.convert.calibrator import LayerData
from spikeprop.convert.calibrators.correction import SpikeCalibrator, add_bias, correct_bias
from spikeprop.convert.calibrators.least_error import quantised
from spikeprop.runtime.checks import at_least_one
from spikeprop.snn import Neuron

POSITIONS = 40_000  # that are enough for the products of inputs
TOGETHER = 64  # images of which a current is computed at once


@dataclass(frozen=True, kw_only=True)
class LeastSquares(SpikeCalibrator):
    """Thresholds of least error, then each layer's weights by least squares on real rates; thresholds and biases once more.

    For conversion without training to very few steps: the default below 16 different sums that a neuron can send.

    Attributes:
        iterations: steps of the fit; the best is kept.
        ridge: lambda, as a fraction of the mean square of the inputs; larger values stay nearer to the ANN's weights, and overfit
            less where there are few images.
    """

    iterations: int = 3
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "iterations")
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; it is a positive fraction")

    def correct(self, data: LayerData) -> None:
        fit = WeightFit.of(data, self.timesteps)
        if fit is not None:
            fit.run(self.iterations, self.ridge)
        if isinstance(data.layer.neuron, Neuron):
            self.set_threshold(data)
            correct_bias(data)


class WeightFit:
    """The fit of one layer's weights and bias.

    Args:
        data: of the layer, which has its threshold.
        op: convolution or linear layer at the end of one of its branches, with a bias.
        timesteps: T.
    """

    def __init__(self, data: LayerData, op: nn.Conv2d | nn.Linear, timesteps: int):
        self.data, self.op, rates = data, op, data.spikes.rates(data.layer)
        self.neuron = data.layer.neuron if isinstance(data.layer.neuron, Neuron) else None
        self.counts = data.counts(timesteps) if self.neuron is not None else 0
        self.groups = op.groups if isinstance(op, nn.Conv2d) else 1
        self.fixed = torch.zeros(1).to(data.target)
        for _, source, synapse in data.layer.branches():
            x, ops = rates[source], list(synapse)
            for before in ops[:-1] if ops and ops[-1] is op else ops:
                x = before(x)
            if ops and ops[-1] is op:
                self.inputs = x
            else:
                self.fixed = self.fixed + x

    @classmethod
    def of(cls, data: LayerData, timesteps: int) -> WeightFit | None:
        """The fit, where one of the branches ends in an operation that it knows."""
        op = add_bias(data.layer, data.target.dim() - 2)
        known = isinstance(op, nn.Linear) or (isinstance(op, nn.Conv2d) and op.padding_mode == "zeros" and op.padding != "same")
        return cls(data, op, timesteps) if known else None

    def run(self, iterations: int, ridge: float) -> None:
        """Leave the weights of the least error in the layer."""
        products_GKK = self._products()
        size = products_GKK.diagonal(dim1=1, dim2=2)[:, :-1].mean() * ridge
        products_GKK += torch.eye(products_GKK.shape[1]).to(products_GKK) * size.clamp(min=torch.finfo(size.dtype).tiny)
        assert self.op.bias is not None
        tensors = (self.op.weight, self.op.bias)
        least, best = torch.inf, [t.detach().clone() for t in tensors]
        for step in range(iterations + 1):
            error, gradient_GOK = self._error()
            if not error < least:
                break
            least, best = error, [t.detach().clone() for t in tensors]
            if step < iterations:
                change_GOK = torch.linalg.solve(products_GKK, gradient_GOK, left=False).to(self.op.weight)
                change = change_GOK.flatten(0, 1)
                for tensor, moved in zip(tensors, (change[:, :-1], change[:, -1])):
                    tensor.data += moved.reshape(tensor.shape)
        for tensor, value in zip(tensors, best):
            tensor.data.copy_(value)

    def _products(self) -> Tensor:
        """Mean of x x' over some positions of all images, in float64."""
        shard = self.data.shard
        places = self._patches(self.inputs[:1]).shape[0]
        count = shard.size(places * len(self.inputs))
        stride, total, seen = max(1, count // POSITIONS), 0.0, 0
        for some in self.inputs.split(TOGETHER):
            x_NGK = self._patches(some)[seen % stride :: stride]
            total = total + torch.einsum("ngk,ngl->gkl", x_NGK, x_NGK).double()
            seen += len(x_NGK)
        sums = shard.total(torch.cat([total.flatten(), total.new_tensor([float(seen)])]))  # type: ignore[union-attr]
        return sums[:-1].reshape(total.shape) / sums[-1]  # type: ignore[union-attr]

    def _patches(self, some: Tensor) -> Tensor:
        """Inputs of the operation at each position, and a 1: (N, G, K)."""
        if isinstance(self.op, nn.Linear):
            x_NGK = some.reshape(-1, 1, some.shape[-1])
        else:
            op: Any = self.op
            columns = F.unfold(some, op.kernel_size, op.dilation, op.padding, op.stride)  # (b, C * kernel, positions)
            x_NGK = columns.transpose(1, 2).reshape(-1, self.groups, columns.shape[1] // self.groups)
        return torch.cat([x_NGK, torch.ones_like(x_NGK[..., :1])], 2)

    def _error(self) -> tuple[float, Tensor]:
        """Squared error over all images, and mean of m (a - o) x' (G, O, K), in float64."""
        found: list[Tensor] = []  # gradient by weight, by bias, squared error, positions; summed over the parts
        for first in range(0, len(self.inputs), TOGETHER):
            some = slice(first, first + TOGETHER)
            fixed = self.fixed if len(self.fixed) == 1 else self.fixed[some]
            wanted, error = self._wanted(self.op(self.inputs[some]) + fixed, self.data.target[some])
            by_weight, by_bias = self._gradients(self.inputs[some], wanted)
            positions = by_bias.new_tensor([wanted.numel() / len(by_bias)])
            part = [by_weight.flatten(), by_bias, error.reshape(1), positions]
            found.append(torch.cat([values.double() for values in part]))
        sums = self.data.shard.total(torch.stack(found).sum(0))
        outputs = len(self.op.weight)
        gradient = torch.cat([sums[: -outputs - 2].reshape(outputs, -1), sums[-outputs - 2 : -2].unsqueeze(1)], 1) / sums[-1]
        return float(sums[-2]), gradient.unflatten(0, (self.groups, -1))

    def _wanted(self, current: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """m (a - o), and the squared error."""
        if self.neuron is None:
            wanted = target - current
            return wanted, wanted.square().sum(dtype=torch.float64)
        full, start, low = self.neuron.full_scale, self.neuron.v_init, -1 if self.data.layer.both_signs else 0
        apart = target - full * quantised(current / full, start, self.counts, low * self.counts)
        ramp = current / full + (start - 0.5) / self.counts
        return apart * ((ramp >= low) & (ramp <= 1)), apart.square().sum(dtype=torch.float64)

    def _gradients(self, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of ``wanted`` times inputs, in the form of the weights, and of ``wanted``."""
        op = self.op
        if isinstance(op, nn.Linear):
            rows_NO = wanted.reshape(-1, op.out_features)
            return rows_NO.T @ inputs.reshape(-1, op.in_features), rows_NO.sum(0)
        settings: Any = (op.stride, op.padding, op.dilation, op.groups)
        by_weight = conv2d_weight(inputs, op.weight.shape, wanted, *settings)
        return by_weight, wanted.sum((0, 2, 3))
