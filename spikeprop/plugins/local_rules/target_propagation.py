"""``TargetPropagation``: difference target propagation (Lee et al. 2015, arXiv:1412.7525).

Each layer h_n = f_n(h_(n-1)) has a learnt inverse g_n, and a target that its own loss pulls it to:

    t_N = h_N - step dL/dh_N            (the last hidden layer, by the output's error)
    t_(n-1) = h_(n-1) + g_n(t_n) - g_n(h_n)
    dL/dtheta_n = (dh_n/dtheta_n)^T (h_n - t_n) / step          (of |f_n(h_(n-1)) - t_n|^2 / 2, in the loss's units)

    g_n minimises |g_n(f_n(h + noise)) - (h + noise)|^2 / 2, a mean over the values of h

Where g_n is linear with the matrix W_n^T and f_n is linear, it is backprop; with W_n^-1 it is a Gauss-Newton target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn.segments import SegmentPass
from spikeprop.plugins.local_rules.base import ForwardPass, SegmentRule, add_gradients, own_key
from spikeprop.runtime.checks import one_of, positive
from spikeprop.runtime.modes import evaluating

LARGEST = 2**26  # weights of one inverse
InverseActivation = Literal["linear", "relu", "tanh"]
ACTIVATIONS = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}


class Inverse(nn.Module):
    """g(h) = activation(V h + c), from a layer's output to its input, of any shapes.

    Args:
        outputs, inputs: shapes of one example's output and input of the layer.
        activation: of the inverse.
        like: whose type and device its weights have.
    """

    def __init__(self, outputs: torch.Size, inputs: torch.Size, activation: InverseActivation, like: Tensor):
        super().__init__()
        self.inputs = inputs
        self.linear = nn.Linear(outputs.numel(), inputs.numel(), dtype=like.dtype, device=like.device)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, h: Tensor) -> Tensor:
        """Inputs (B, ...) that would give the outputs ``h`` (B, ...)."""
        if h[0].numel() != self.linear.in_features:
            raise SegmentError(
                f"a layer sends {h[0].numel()} values, and its inverse takes {self.linear.in_features}: all batches must have "
                "the image size that prepare was given"
            )
        return self.activation(self.linear(h.flatten(1))).unflatten(1, self.inputs)


@dataclass(frozen=True, kw_only=True)
class TargetPropagation(SegmentRule):
    """Targets in place of gradients, propagated by learnt inverses.

    Attributes:
        loss: any loss of scores and labels.
        step_size: of the last hidden layer's target along its gradient (of the loss of one example).
        noise: standard deviation of what is added to a layer's input to train its inverse, relative to the input's own.
        inverse: activation of the inverses; tanh is the paper's.
    """

    knows: ClassVar[str] = "its input, its target, by learnt inverses of the later layers; the inverses train by themselves"
    chain: ClassVar[bool] = True
    step_size: float = 0.1
    noise: float = 0.1
    inverse: InverseActivation = "tanh"

    def __post_init__(self) -> None:
        positive(self, "step_size", "noise")
        one_of(self, "inverse", *ACTIVATIONS)

    @property
    def reruns(self) -> bool:
        return True

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        graph = self.graph(model)
        with evaluating(model):
            run = SegmentPass(graph, x)
        for segment in graph.segments[1:-1]:
            value, source = run.values[segment.name], run.values[segment.reads[0]]
            size = value[0].numel() * source[0].numel()
            if size > LARGEST:
                raise SegmentError(
                    f"the inverse of segment {segment.name!r} would have {size:,} weights, more than {LARGEST:,}: "
                    "use DirectFeedbackAlignment, or smaller layers"
                )
            self.own[own_key(segment.name)] = Inverse(value[0].shape, source[0].shape, self.inverse, value)

    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        graph, run, count = batch.graph, batch.run, len(batch.x)
        run.add_parameter_gradients(graph.output, batch.error)
        hidden, gaps = batch.hidden(), []
        if not hidden:
            return {}
        (gradient,) = run.vjp(graph.output, count * batch.error)
        assert gradient is not None
        h = run.values[hidden[-1].name]
        target = h - self.step_size * gradient
        for segment in reversed(hidden):
            run.add_parameter_gradients(segment.name, (h - target) / (self.step_size * count))
            if segment is not hidden[0]:
                inverse, source = self.held(segment.name), run.values[segment.reads[0]]
                gaps.append(self._train_inverse(inverse, segment.module, source))
                with torch.no_grad():
                    target = source + inverse(target) - inverse(h)
                h = source
        return {"reconstruction": torch.stack(gaps).mean()} if gaps else {}

    def _train_inverse(self, inverse: nn.Module, layer: nn.Module, h: Tensor) -> Tensor:
        """Add to the inverse's gradient; returns the part of the input's variance that it does not restore."""
        noisy = h + self.noise * h.std() * torch.randn_like(h)
        with torch.no_grad():
            seen = layer(noisy.clone())
        with torch.enable_grad():
            loss = (inverse(seen) - noisy).square().mean() / 2
        parameters = [p for p in inverse.parameters() if p.requires_grad]
        add_gradients(parameters, torch.autograd.grad(loss, parameters))
        return 2 * loss.detach() / noisy.var().clamp_min(torch.finfo(h.dtype).tiny)
