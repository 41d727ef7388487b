"""``FeedbackAlignment`` and ``DirectFeedbackAlignment``: the error reaches a layer by fixed random weights in place of W^T.

    feedback alignment:         delta_n = (B_(n+1) delta_(n+1)) * f'_n      (Lillicrap et al. 2016, arXiv:1411.0247)
    direct feedback alignment:  dL/dh_n is replaced by B_n e,  e = dL/d output      (Nokland 2016, arXiv:1609.01596)

With B = W^T, and B_n = the transposed product of the later layers of a linear network, they are backprop. ``ReadoutOnly`` trains
the last layer alone, the control that tells what a rule adds in the layers before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn.segments import SegmentGraph, SegmentPass
from spikeprop.plugins.activation_relaxation.overrides import BackwardOverrides, products, refuse_other_weights
from spikeprop.plugins.activation_relaxation.relax import adjoints
from spikeprop.plugins.local_rules.base import ForwardPass, SegmentRule, fixed, own_key
from spikeprop.runtime.checks import positive_or_null
from spikeprop.runtime.modes import evaluating


@dataclass(frozen=True, kw_only=True)
class FeedbackAlignment(SegmentRule):
    """Backprop with fixed random weights in the backward pass of linear layers and convolutions.

    Attributes:
        loss: any loss of scores and labels.
        std: standard deviation of the backward weights; null for that of each forward weight.
    """

    knows: ClassVar[str] = "its input, its slope, and by fixed random weights the errors of the layers that read it"
    std: float | None = None

    def __post_init__(self) -> None:
        positive_or_null(self, "std")

    def check(self, model: nn.Module, graph: SegmentGraph) -> None:
        super().check(model, graph)
        refuse_other_weights("FeedbackAlignment", model, graph)

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        super().prepare(model, x)
        for name, weight in products(model).items():
            std = float(weight.detach().std(correction=0)) if self.std is None else self.std
            if not std > 0:
                raise SegmentError(
                    f"{name}.weight has the standard deviation {std}, so that its backward weights would carry no error: give "
                    "FeedbackAlignment a std, or the network other initial weights"
                )
            self.own[own_key(name)] = fixed(torch.randn_like(weight) * std)

    def overrides(self, model: nn.Module) -> BackwardOverrides:
        held = {id(weight): next(self.held(name).parameters()) for name, weight in products(model).items()}
        return BackwardOverrides(held, activations=False)

    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        assert batch.mode is not None
        batch.mode.weights = False  # only the errors; the weights' gradients follow from them
        errors = adjoints(batch.graph, batch.run.vjp, {batch.graph.output: batch.error})
        batch.mode.weights = True
        _add(batch, errors)
        return {}


@dataclass(frozen=True, kw_only=True)
class DirectFeedbackAlignment(SegmentRule):
    """The output's error reaches every layer by a fixed random matrix of its own.

    Attributes:
        loss: any loss of scores and labels.
        std: standard deviation of the matrices; null for 1/sqrt(neurons) of each layer.
    """

    knows: ClassVar[str] = "its input, its slope, and by fixed random weights the output's error"
    std: float | None = None

    def __post_init__(self) -> None:
        positive_or_null(self, "std")

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        super().prepare(model, x)
        with evaluating(model):
            run = SegmentPass(self.graph(model), x)
        outputs = run.output[0].numel()
        for segment in self.graph(model).segments[:-1]:
            if segment.parameters():
                value = run.values[segment.name]
                neurons = value[0].numel()
                std = neurons**-0.5 if self.std is None else self.std
                feedback = torch.randn(outputs, neurons, dtype=value.dtype, device=value.device)
                self.own[own_key(segment.name)] = fixed(feedback * std)

    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        error, signals = batch.error.flatten(1), {batch.graph.output: batch.error}
        for segment in batch.hidden():
            if segment.parameters():
                value, feedback = batch.run.values[segment.name], next(self.held(segment.name).parameters())
                if feedback.shape != (error.shape[1], value[0].numel()):
                    raise SegmentError(
                        f"segment {segment.name!r} sends {value[0].numel()} values for {error.shape[1]} outputs, and its "
                        f"feedback is {tuple(feedback.shape)}: all batches must have the image size that prepare was given"
                    )
                signals[segment.name] = (error @ feedback).reshape(value.shape)
        _add(batch, signals)
        return {}


@dataclass(frozen=True, kw_only=True)
class ReadoutOnly(SegmentRule):
    """Trains the last segment with weights, and leaves the others as they were drawn: a control for comparisons.

    Attributes:
        loss: any loss of scores and labels.
    """

    knows: ClassVar[str] = "the last layer: its input and the output's error; the others are not trained"

    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        _add(batch, {batch.graph.output: batch.error})
        return {}


def _add(batch: ForwardPass, signals: dict[str, Tensor]) -> None:
    for name, signal in signals.items():
        batch.run.add_parameter_gradients(name, signal)
