"""Errors of regression, where outputs are real numbers: mean squared error and R^2, of an ANN and at numbers of time steps.

A spiking network accumulates its output, so its estimate after T steps is that sum over T, in the units of the ANN that it was
converted from (``SpikingNetwork.estimate``). With targets y, outputs z and the mean
of y for each output,

    MSE = mean (z - y)^2,    R^2 = 1 - sum (z - y)^2 / sum (y - mean y)^2      over all examples and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.errors import EvaluationError, LabelError
from spikeprop.evaluate.accuracy import labelled_batches, wanted_timesteps
from spikeprop.evaluate.activity import device_of
from spikeprop.evaluate.predictor import chosen_output, outputs_of, simulated_steps
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.timed_input import time_first


@dataclass(frozen=True)
class RegressionError:
    """Mean squared error, and R^2 (nan where the targets do not vary)."""

    mse: float
    r2: float


@torch.no_grad()
def ann_error(model: nn.Module, batches: Any, *, output: str | None = None) -> RegressionError:
    """Error of an ANN in evaluation mode.

    Args:
        model: the network.
        batches: (inputs, targets); targets are floats in the outputs' shape, or (B,) for one output.
        output: name of the output that is evaluated, of a network with several.

    Raises:
        LabelError: targets of another shape, or integers.
        ValueError: no examples.
    """
    if isinstance(model, SpikingNetwork):
        raise EvaluationError("this is a spiking network: use snn_error, with numbers of time steps")
    model.eval()
    sums = _Sums()
    for x, y in labelled_batches(model, batches):
        sums.add(outputs_of(model, x.to(device_of(model)), output).unsqueeze(0), y)
    return sums.errors()[0]


@torch.no_grad()
def snn_error(
    network: SpikingNetwork, batches: Any, timesteps: Sequence[int] | None = None, *, seed: int = 0, output: str | None = None
) -> dict[int, RegressionError]:
    """Error of a spiking network's estimate at each number of steps T, ascending.

    Args:
        network: spiking network; evaluated in evaluation mode.
        batches: (inputs, targets), as for ``ann_error``.
        timesteps: numbers of steps, in any order, each at least 1; None for all steps of sequences, which are of one length.
        seed: of the encoder's random numbers, a batch at a time.
        output: name of the output that is evaluated, of a network with several.

    Raises:
        LabelError: targets of another shape, or integers.
        EvaluationError: still samples without ``timesteps``, or sequences that have fewer steps, or differ in length.
        ValueError: no examples, or timesteps below 1.
    """
    wanted = [] if timesteps is None else wanted_timesteps(timesteps)
    if not isinstance(network, SpikingNetwork):
        raise EvaluationError(f"{type(network).__name__} is not a spiking network: use ann_error, or convert it first")
    network.eval()
    sums = _Sums()
    for number, (x, y) in enumerate(labelled_batches(network, batches)):
        seed_torch(seed, number)
        x, lengths = time_first(network, x.to(device_of(network)))
        steps = simulated_steps(network, x, wanted, False)
        wanted = wanted or [len(x)]
        if lengths is not None or (steps is None and wanted[-1] > len(x)):
            raise EvaluationError("errors are measured of sequences of one length; evaluate each length by itself")
        outputs = (step for chunk in network.unroll(x, steps) for step in chunk)
        sums.add(
            torch.stack(
                [
                    chosen_output(network.structured(network.estimate(sum_B, t)), output)
                    for t, sum_B in enumerate(outputs, 1)
                    if t in wanted
                ]
            ),
            y,
        )
    return dict(zip(wanted, sums.errors()))


class _Sums:
    """Sums over the batches, in float64; targets are shifted by their first batch's mean, which keeps their variance exact."""

    def __init__(self) -> None:
        self.seen = 0

    def add(self, outputs_TB: Tensor, y: Tensor) -> None:
        shape = outputs_TB.shape[1:]
        one = shape.numel() == shape[0]
        if not y.is_floating_point() or (y.shape != shape and not (one and y.numel() == shape[0])):
            dtype = str(y.dtype).removeprefix("torch.")
            raise LabelError(
                f"targets {tuple(y.shape)} of {dtype} for outputs {tuple(shape)}: regression needs floats in the outputs' shape; "
                "for classes use ann_accuracy or snn_accuracy"
            )
        if not bool(torch.isfinite(y).all()):
            raise LabelError("targets hold NaN or infinity; leave these examples out")
        y_B = y.reshape(shape).to(outputs_TB.device, torch.float64)
        if not self.seen:
            self.shift = y_B.mean(0)
            self.squared, self.total, self.total_squares = torch.zeros(len(outputs_TB)).double(), 0.0, 0.0
        self.seen += len(y_B)
        self.squared = self.squared + (outputs_TB.double() - y_B).square().flatten(1).sum(1).cpu()
        shifted_B = y_B - self.shift
        self.total, self.total_squares = self.total + shifted_B.sum(0), self.total_squares + shifted_B.square().sum()

    def errors(self) -> list[RegressionError]:
        if not self.seen:
            raise ValueError("no images to evaluate on")
        variation = float(self.total_squares - (torch.as_tensor(self.total).square() / self.seen).sum())
        numbers = self.seen * self.shift.numel()
        return [
            RegressionError(float(s) / numbers, 1 - float(s) / variation if variation > 0 else float("nan")) for s in self.squared
        ]
