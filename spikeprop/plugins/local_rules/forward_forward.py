"""``ForwardForward`` (Hinton 2022, arXiv:2212.13345): two forward passes, and no error that goes back.

Each hidden layer learns to be active for an image with its own label in it, and inactive for one with a wrong label:

    g = mean over the layer's values of h^2,      loss = softplus(alpha (g_wrong - g_right)) / alpha

Both goodnesses are those of the same image (SymBa: Lee & Song 2023, arXiv:2303.08418). Hinton compares each with a fixed
threshold; but a convolution sees a small part of an image, and most of its goodness is a matter of the image, not of the label.
A threshold then makes the goodness of all images equal: the layer learns one direction, and other units die. In the difference
the image's part cancels.

From layer to layer goes h / rms(h), so that a layer cannot read the goodness of the one before. The labels are random patterns
over the complete image, which convolutions see everywhere (after Scodellaro et al. 2023, arXiv:2312.14924), and are added. The
last layer is a softmax that is trained on what the hidden layers say to the image without a label (Hinton's section 3.3), so the
network is used in one ordinary pass. Since that pass does not normalise, hidden layers must be homogeneous: f(a h) = a f(h) for
a > 0, as ReLU layers without bias are; then normalisation changes only the length of what is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.errors import LabelError, SegmentError
from spikeprop.learn.segments import SegmentGraph, SegmentPass
from spikeprop.plugins.local_rules.base import ForwardPass, SegmentRule, add_gradients, fixed
from spikeprop.runtime.checks import positive
from spikeprop.runtime.labels import read_labels
from spikeprop.runtime.modes import evaluating


@dataclass(frozen=True, kw_only=True)
class ForwardForward(SegmentRule):
    """Hidden layers by their goodness, the last one by the loss.

    Attributes:
        loss: of the last layer.
        sharpness: alpha.
        label_scale: size of the label's pattern, relative to the standard deviation of the images.
        readout_rate: factor on the learning rate of the last layer. Without a label, what hidden layers say differs little from
            class to class, so the last layer needs large weights while a hidden layer at such a rate loses units. Optimisers get
            it by ``with_rates(rule.param_groups(model), lr=...)``, as recipes do.
    """

    knows: ClassVar[str] = "its input and its own activity in two forward passes; labels come with the input"
    chain: ClassVar[bool] = True
    sharpness: float = 4.0
    label_scale: float = 1.0
    readout_rate: float = 20.0

    def __post_init__(self) -> None:
        positive(self, "sharpness", "label_scale", "readout_rate")

    @property
    def reruns(self) -> bool:
        return True

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        graph = self.graph(model)
        with evaluating(model):
            run = SegmentPass(graph, x)
            _refuse_inhomogeneous(graph, run)
        classes = run.output.shape[1]
        patterns = torch.randn(classes, *x.shape[1:], dtype=x.dtype, device=x.device).sign()
        self.own["labels"] = fixed(patterns * (self.label_scale * x.std()))

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        graph = self.graph(model)
        last = graph.by_name[graph.output].parameters()
        own = {id(p) for p in last}
        hidden = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        groups = [{"params": hidden}, {"params": last, "lr_factor": self.readout_rate}]
        return [g for g in groups if g["params"]]

    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        batch.run.add_parameter_gradients(batch.graph.output, batch.error)
        right, wrong = self.labelled(batch.x, self._classes(batch))
        h, right_part = torch.cat([right, wrong]), []
        for segment in batch.hidden():
            with torch.enable_grad():
                out = segment.module(h.clone())
                loss, ordered = self.goodness_loss(out)
                parameters = segment.parameters()
                if parameters:
                    add_gradients(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))
                    right_part.append(ordered)
            h = normalised(out.detach())
        return {"separated": torch.stack(right_part).mean()} if right_part else {}

    def labelled(self, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Images with the patterns of their own classes, and of other ones at random; normalised."""
        (patterns,) = self.held("labels").parameters()
        other = (classes + torch.randint_like(classes, 1, len(patterns))) % len(patterns)
        return normalised(x + patterns[classes]), normalised(x + patterns[other])

    def goodness_loss(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of a layer's output (2B, ...), right labels first; and the fraction of pairs in which the right one has more."""
        right, wrong = out.flatten(1).square().mean(1).chunk(2)
        loss = F.softplus(self.sharpness * (wrong - right)).mean() / self.sharpness
        return loss, (right > wrong).to(out).mean()

    def _classes(self, batch: ForwardPass) -> Tensor:
        labels = read_labels(batch.run.output, batch.y, ignorable=False)
        if labels.kind != "classes" or batch.run.output.ndim != 2:
            raise LabelError(
                "ForwardForward puts a class into each image, and these labels are no classes of a network with an output each: "
                "give class numbers (B,), or use another rule"
            )
        return labels.classes()


def normalised(h: Tensor) -> Tensor:
    """Each example divided by the root mean square of its values."""
    rms = h.flatten(1).square().mean(1).sqrt().clamp_min(torch.finfo(h.dtype).eps)
    return h / rms.reshape(-1, *[1] * (h.ndim - 1))


def _refuse_inhomogeneous(graph: SegmentGraph, run: SegmentPass) -> None:
    for segment in graph.segments[:-1]:
        biased = any(isinstance(getattr(m, "bias", None), Tensor) for m in segment.module.modules())  # also one that begins at 0
        (source,) = segment.reads
        with torch.no_grad():
            scaled = {a: segment.module(a * run.values[source]) / a for a in (2, 1024)}  # the second one finds saturation
        if biased or not all(torch.allclose(out, run.values[segment.name], rtol=1e-3, atol=1e-5) for out in scaled.values()):
            raise SegmentError(
                f"segment {segment.name!r} is not homogeneous (it has a bias, or an activation that saturates), so "
                "ForwardForward, which normalises between layers, would train another network than the one that is used: use "
                "bias-free layers with ReLU, as spikeprop.CNN has them, or another rule"
            )
