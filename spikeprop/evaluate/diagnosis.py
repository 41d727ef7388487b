"""Where a conversion loses accuracy, and why: each layer's error, split into what it inherits, what it adds, and the causes.

A layer sends n in T steps, which stands for n/T * scale. Its sources sent means that give it the mean current z; a perfect layer
would make f(z) of it, f the ANN's activation, where the ANN has a. So

    n/T scale - a  =  (f(z) - a) inherited  +  (n/T scale - f(z)) its own,   and its own is the sum of
    clipping     min(f(z), p scale) - f(z)           it sends at most p a step
    rounding     m/T scale - min(f(z), p scale)      m = ceil(f(z) T/scale + v_init) - 1, of a constant current, in 0..p T
    unevenness   (n - m)/T scale                     what comes late cannot be sent, or what came early not be taken back
    silence      rounding, of channels that send nothing although f(z) is active

Shares are of the squared norm. How much an error matters is measured: "alone" is the share of the images whose prediction changes
if the ANN makes this layer's own error and no other. Suffix legend: B images.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeprop.errors import EvaluationError
from spikeprop.evaluate.activity import device_of
from spikeprop.evaluate.error import ideal, mean_sent
from spikeprop.snn import INPUT, Layer, Neuron, SpikingNetwork
from spikeprop.snn.activity import payloads

CAUSES = {
    "clipping": "thresholds are too low: a neuron can send no more in a step. Calibrate for this number of steps "
    "(LeastError, LightCalibration), or take more levels (GradedIF)",
    "rounding": "a spike stands for too much: take more steps or more levels (GradedIF), or calibrate for this number of steps "
    "with one threshold a channel",
    "unevenness": "spikes come unevenly: take neurons that send back what was too much (SignedIF, GradedIF), or search='spikes'",
    "silence": "channels never fire: give each its own threshold (per='channel'), start at v_init=0.5, or take more steps",
}
SLIGHT = 1e-3  # relative errors below are none
ALIKE = 0.5  # correlation of a layer's currents with the ANN's below which it was converted from another one


@dataclass(frozen=True)
class LayerLoss:
    """What one layer loses at one number of steps. Errors are relative to the norm of the ANN's activation.

    Attributes:
        layer, timesteps: which.
        total, inherited, own: errors; the two parts add up as vectors.
        clipping, rounding, unevenness, silence: shares of the squared own error, in percent.
        silent, channels: channels that send nothing although they should; of how many.
        alone: images of which the prediction changes by the own error alone, in percent.
    """

    layer: str
    timesteps: int
    total: float
    inherited: float
    own: float
    clipping: float
    rounding: float
    unevenness: float
    silence: float
    silent: int
    channels: int
    alone: float

    @property
    def cause(self) -> str | None:
        """The largest part of the own error; None where there is hardly any."""
        return max(CAUSES, key=lambda name: getattr(self, name)) if self.own > SLIGHT else None


@dataclass(frozen=True)
class ConversionDiagnosis:
    """What ``explain_conversion`` found; printed, it is a text.

    Attributes:
        rows: by number of steps, in the order of the layers.
        agreement: percentage of the images with the ANN's prediction, by number of steps.
        images: their number.
    """

    rows: list[LayerLoss]
    agreement: dict[int, float]
    images: int

    def at(self, timesteps: int) -> list[LayerLoss]:
        """The layers at one number of steps."""
        return [row for row in self.rows if row.timesteps == timesteps]

    def worst(self, timesteps: int) -> LayerLoss:
        """The layer whose own error costs most: most predictions alone, then the largest own error."""
        return max(self.at(timesteps), key=lambda row: (row.alone, row.own))

    def values(self) -> dict[str, Any]:
        """JSON values: ``images``, ``agreement`` by number of steps, and ``layers``, each with its ``cause`` and ``advice``."""
        layers = [{**vars(row), "cause": row.cause, "advice": CAUSES[row.cause] if row.cause else None} for row in self.rows]
        return {"images": self.images, "agreement": {str(t): found for t, found in self.agreement.items()}, "layers": layers}

    def __str__(self) -> str:
        return "\n\n".join(self._text(t) for t in self.agreement)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _text(self, timesteps: int) -> str:
        worst = self.worst(timesteps)
        lines = [
            f"T = {timesteps}: the spiking network predicts as the ANN for {self.agreement[timesteps]:.1f} % of {self.images} "
            "images."
        ]
        cause = worst.cause
        if cause is None:
            lines += ["No layer adds an error of its own."]
        elif self.agreement[timesteps] == 100:
            lines += [
                f"No prediction is lost. The largest error of its own, {100 * worst.own:.1f} %, is that of {worst.layer}, and "
                f"alone it changes {worst.alone:.1f} % of the predictions. {getattr(worst, cause):.0f} % of that is {cause}."
            ]
        else:
            lines += [
                f"Most is lost in {worst.layer}: it inherits an error of {100 * worst.inherited:.1f} % and adds one of "
                f"{100 * worst.own:.1f} %, which alone changes {worst.alone:.1f} % of the predictions.",
                f"{getattr(worst, cause):.0f} % of that is {cause}: {CAUSES[cause]}.",
            ]
        width = max(len(row.layer) for row in self.at(timesteps))
        heads = ("inherits", "adds", "alone", *CAUSES, "silent channels")
        lines += [f"{'%':<{width}}" + "".join(f"{head:>{max(9, len(head)) + 1}}" for head in heads)]
        for row in self.at(timesteps):
            numbers = (100 * row.inherited, 100 * row.own, row.alone, *(getattr(row, cause) for cause in CAUSES))
            cells = "".join(f"{number:>{max(9, len(head)) + 1}.1f}" for head, number in zip(heads, numbers))
            lines.append(f"{row.layer:<{width}}{cells}{f'{row.silent} of {row.channels}':>{len(heads[-1]) + 1}}")
        return "\n".join(lines)


@torch.no_grad()
def diagnose(
    network: SpikingNetwork, plain: SpikingNetwork, x: Tensor, timesteps: Sequence[int], output: str | None = None
) -> ConversionDiagnosis:
    """Compare a converted network with its ANN, layer by layer.

    Args:
        network: calibrated.
        plain: the ANN as an uncalibrated network with the same layers.
        x: images (B, ...). Activations of all layers are kept for them.
        timesteps: numbers of steps.
        output: name of the output whose predictions are compared, of an ANN that returns several.

    Raises:
        EvaluationError: not converted from ``plain``, no such output, or a run beforehand, whose steps do not count.
    """
    if list(network.layers) != list(plain.layers):
        odd = sorted(set(network.layers) ^ set(plain.layers)) or list(network.layers)
        raise EvaluationError(f"the network was not converted from this ANN, which has other layers: {', '.join(odd[:5])}")
    if network.readout.restarts:
        raise EvaluationError("the network runs beforehand (OffsetSpike), so its spikes are not those of its steps")
    predicted = _prediction_of(network, output)
    x = x.to(device_of(network))
    values = _walk(plain, {INPUT: x})
    _check_origin(network, plain, values)
    wanted = predicted(values[list(plain.layers)[-1]])
    means, outputs = mean_sent(network, x, timesteps)
    compared = {t: _Comparison(network, plain, values, sent, t, predicted) for t, sent in means.items()}
    rows = [comparison.row(name) for comparison in compared.values() for name in network.dynamics()]
    agreement = {t: _percent(predicted(outputs[t]) == wanted) for t in means}
    return ConversionDiagnosis(rows, agreement, len(x))


def _check_origin(network: SpikingNetwork, plain: SpikingNetwork, values: Mapping[str, Tensor]) -> None:
    """Each layer's currents for the ANN's activations are the ANN's own, less what a calibrator corrects.

    A bias moves all images alike, so the means over them are taken off. Fitted weights (``LeastSquares``) still correlate.
    """
    layers = dict(network.named_layers())
    sent = {
        source: (a / (layers[source].dynamics.spike_size * layers[source].scale) if source != INPUT else a).unsqueeze(0)
        for source, a in values.items()
    }
    for name, own in plain.named_layers():
        ours = _less_mean(layers[name].current(sent)[0])
        theirs = _less_mean(own.current({source: a.unsqueeze(0) for source, a in values.items()})[0])
        size = float(ours.norm() * theirs.norm())
        alike = float((ours * theirs).sum()) / size if size else 1.0
        if alike < ALIKE:
            raise EvaluationError(
                f"the network was not converted from this ANN: the currents of layer {name!r} differ (correlation {alike:.2f}, "
                "about 1 after a conversion); pass the ANN with the weights that it had then, and a network that was not "
                "fine-tuned since"
            )


def _less_mean(total_B: Tensor) -> Tensor:
    """Less the mean over the images, in float64; 0 where only rounding is left."""
    total_B = total_B.double()
    varying = total_B - total_B.mean(0)
    return varying if float(varying.norm()) > SLIGHT * float(total_B.norm()) else torch.zeros_like(varying)


def _prediction_of(network: SpikingNetwork, output: str | None) -> Callable[[Tensor], Tensor]:
    """From a readout to the predictions of one output.

    Raises:
        EvaluationError: no such output, or several and none named.
    """
    parts = {} if network.output_form is None else network.output_form.parts()
    if output is None and len(parts) <= 1:
        output = next(iter(parts), None)
    if output is None and not parts:
        return _predicted
    if output not in parts:
        known = f"output= one of {', '.join(map(repr, parts))}" if parts else "no output="
        raise EvaluationError(f"the network has {len(parts) or 1} outputs and {output!r} is none of them; pass {known}")
    part = parts[output]
    return lambda readout: _predicted(part.of(readout).reshape(len(readout), *(part.shape or (1,))))


class _Comparison:
    """One number of steps.

    Args:
        network, plain: as in ``diagnose``.
        values: the ANN's, by source (B, ...).
        sent: mean of what each source sent a step (B, ...).
        timesteps: T.
        predicted: from a readout to its predictions.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        plain: SpikingNetwork,
        values: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
        timesteps: int,
        predicted: Callable[[Tensor], Tensor],
    ):
        self.network, self.plain, self.values, self.sent, self.timesteps = network, plain, values, sent, timesteps
        self.predicted = predicted
        self.layers, self.payloads = dict(network.named_layers()), payloads(network)

    def row(self, name: str) -> LayerLoss:
        layer, a = self.layers[name], self.values[name]
        perfect, sent = self._perfect(layer), self.sent[name] * layer.dynamics.spike_size * layer.scale
        parts, silent_C = self._parts(name, layer, perfect, sent)
        squares = {cause: float(part.square().sum(dtype=torch.float64)) for cause, part in parts.items()}
        every = sum(squares.values()) or 1.0
        size = float(a.norm()) or 1.0
        return LayerLoss(
            name,
            self.timesteps,
            total=float((sent - a).norm()) / size,
            inherited=float((perfect - a).norm()) / size,
            own=float((sent - perfect).norm()) / size,
            **{cause: 100 * square / every for cause, square in squares.items()},
            silent=int(silent_C.sum()),
            channels=len(silent_C),
            alone=self._alone(name, a + sent - perfect),
        )

    def _perfect(self, layer: Layer) -> Tensor:
        """What the ANN's activation makes of the mean current, in the ANN's units."""
        total = layer.current({source: self.sent[source].unsqueeze(0) for source in layer.sources})[0]
        limit = None if layer.ceiling is None else layer.ceiling / layer.scale
        return layer.dynamics.activation(total, limit) * layer.scale

    def _parts(self, name: str, layer: Layer, perfect: Tensor, sent: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The own error by cause, and which channels are silent."""
        nothing, unit = torch.zeros_like(sent), layer.dynamics.spike_size * layer.scale
        clipped, rounded = ideal(perfect, unit, self.timesteps, layer.dynamics, 2 ** self.payloads[name].bits - 1)
        silent_C = _nowhere(sent) & ~_nowhere(perfect) & isinstance(layer.dynamics, Neuron)
        silent = silent_C.reshape(1, -1, *(1,) * (sent.dim() - 2))
        return {
            "clipping": clipped - perfect,
            "rounding": torch.where(silent, nothing, rounded - clipped),
            "unevenness": torch.where(silent, nothing, sent - rounded),
            "silence": torch.where(silent, sent - clipped, nothing),
        }, silent_C

    def _alone(self, name: str, changed: Tensor) -> float:
        output = list(self.plain.layers)[-1]
        found = _walk(self.plain, {**self.values, name: changed}, after=name)[output]
        return _percent(self.predicted(found) != self.predicted(self.values[output]))


def _walk(plain: SpikingNetwork, values: Mapping[str, Tensor], after: str = INPUT) -> dict[str, Tensor]:
    """The ANN's activations of the layers after one, by name, from those given; what does not depend on it is not computed."""
    found, changed = dict(values), {after}
    for name, layer in plain.named_layers():
        if name != after and changed & set(layer.sources):
            total = layer.current({source: found[source].unsqueeze(0) for source in layer.sources})[0]
            found[name] = layer.dynamics.activation(total, layer.ceiling)
            changed.add(name)
    return found


def _predicted(scores_BK: Tensor) -> Tensor:
    """The class, at each position of dense scores; of one logit its side."""
    return scores_BK > 0 if scores_BK.shape[1] == 1 else scores_BK.argmax(1)


def _nowhere(values: Tensor) -> Tensor:
    """Channels in which all values (B, C, ...) are 0, (C,)."""
    return (values == 0).transpose(0, 1).flatten(1).all(1)


def _percent(which_B: Tensor) -> float:
    return 100 * float(which_B.double().mean())
