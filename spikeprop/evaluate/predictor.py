"""``Predictor``: what a network predicts for a batch, the best classes of every image at every number of steps of interest.

The output accumulated after t steps is the network's output at T = t, so one simulation of max(T) steps gives the predictions for
all smaller T. Examples may be sequences, which have steps of their own: a prediction after t steps is that of the first t steps,
and of all steps where a sequence has fewer.

Suffix legend: N images of the batch, T numbers of steps, K best classes, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.errors import EvaluationError, SpikepropError
from spikeprop.evaluate.activity import ActivityMeter, device_of
from spikeprop.evaluate.early_exit import EarlyExit, leave_early
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.labels import IGNORED, by_example, read_labels
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.output_form import leaves
from spikeprop.snn.timed_input import time_first
from spikeprop.snn.watching import watched_chunk


@dataclass(frozen=True, kw_only=True)
class BatchPredictions:
    """The predictions for one batch.

    Attributes:
        number: of the batch, from 0.
        labels: true classes (N,) int64; of a network with positions, those of each position that has one.
        best: best classes (N, T, K) int16 (int32 from 32,768 classes on), best first.
        counts: of the activity (3, T, L) as ``ActivityMeter`` takes them; zeros where it was not counted.
        counted: images whose activity was counted.
        seconds: that the batch took, loading included.
        early: with early exit, the class predicted (N,) and the number of steps after which the image left (N,), (2, N) int64.
        images: number of examples; fewer than labels where each has positions.
        steps: of the longest sequence; 0 of still samples, and where it is not known.
    """

    number: int
    labels: Tensor
    best: Tensor
    images: int
    counts: Tensor = field(default_factory=lambda: torch.zeros(3, 0, 0, dtype=torch.float64))
    counted: int = 0
    seconds: float = 0.0
    early: Tensor | None = None
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Which predictions are made.

    Attributes:
        timesteps: numbers of steps, ascending; none for an ANN, and for all steps of sequences.
        top: how many classes, best first, are kept for each image.
        classes: of the data, to be compared with the number of the network's outputs; None for no comparison.
        seed: seeds the encoder's draws, a batch at a time, so a batch's predictions do not depend on the batches before it.
        early_exit: when images leave a second simulation of the largest number of steps; None for no second simulation.
        output: name of the output that is evaluated, of a network with several.
    """

    timesteps: tuple[int, ...] = ()
    top: int = 5
    classes: int | None = None
    seed: int = 0
    early_exit: EarlyExit | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        if (self.timesteps and self.timesteps[0] < 1) or list(self.timesteps) != sorted(set(self.timesteps)):
            raise ValueError(f"timesteps {list(self.timesteps)}: give numbers, each at least 1, in ascending order")

    def meter(self, network: nn.Module) -> ActivityMeter | None:
        """A meter for all numbers of steps; None for an ANN."""
        return ActivityMeter(network, self.timesteps) if isinstance(network, SpikingNetwork) else None

    @torch.no_grad()
    def predict(self, network: nn.Module, number: int, x: Any, y: Tensor, meter: ActivityMeter | None = None) -> BatchPredictions:
        """Predict the classes of batch ``number``; the network is in evaluation mode.

        Args:
            network: spiking network, or an ANN where there are no ``timesteps``.
            number: of the batch.
            x: images (N, ...), or sequences (N, T, ...) or ``Sequences``.
            y: their classes (N,), or in a form that ``spikeprop.runtime.labels`` describes.
            meter: counts spikes over its own number of steps.

        Raises:
            LabelError: the labels do not fit the network's outputs.
            EvaluationError: the network predicts another number of classes than ``classes``; or still samples without numbers
                of steps, sequences with more steps than they have, or sequences for an ANN.
        """
        x = x.to(device_of(network))
        seed_torch(self.seed, number)
        best, scores = (
            self._simulate(network, x, meter)
            if isinstance(network, SpikingNetwork)
            else self._once(outputs_of(network, x, self.output))
        )
        labels = read_labels(scores, y).classes().flatten().cpu()
        counted = labels != IGNORED
        early = self._early(network, number, x)
        early = early[:, counted] if early is not None else None
        steps = longest_of(network, x) if isinstance(network, SpikingNetwork) else 0
        return BatchPredictions(
            number=number, labels=labels[counted], best=best[counted], early=early, images=len(x), steps=steps
        )

    def check_steps(self, batches: Sequence[BatchPredictions]) -> None:
        """Refuse predictions after more steps than the longest of all sequences has; shorter ones keep their last output.

        Raises:
            EvaluationError: says how many there are.
        """
        check_steps(self.timesteps, max((batch.steps for batch in batches), default=0))

    def _early(self, network: nn.Module, number: int, x: Any) -> Tensor | None:
        """What early exit makes of the batch, on the same draws."""
        if self.early_exit is None or not isinstance(network, SpikingNetwork):
            return None
        seed_torch(self.seed, number)
        exits = leave_early(network, x, self.timesteps[-1] if self.timesteps else None, self.early_exit)
        return torch.stack([exits.predicted, exits.steps]).cpu()

    def _simulate(self, network: SpikingNetwork, x: Any, meter: ActivityMeter | None) -> tuple[Tensor, Tensor]:
        """The best classes after each number of steps (N, T, K), and the last scores."""
        images, (x, lengths) = len(x), time_first(network, x)
        steps = simulated_steps(network, x, self.timesteps, lengths is not None)
        wanted = {min(t, len(x)) for t in self.timesteps} if steps is None else set(self.timesteps)
        last = max(wanted) if wanted else len(x)
        observed = _observed(network, images, last, meter, lengths) if meter is not None else {}
        best, scores = {}, torch.empty(0)
        outputs = (step for chunk in network.unroll(x, steps, lengths=lengths, **observed) for step in chunk)
        for t, output in enumerate(outputs, 1):
            if t in wanted or t == last:
                scores = chosen_output(network.structured(output), self.output)
                best[t] = self._best(scores)
            if t == last:  # what is left of longer sequences changes nothing
                break
        return torch.stack([best[min(t, last)] for t in self.timesteps or (last,)], 1), scores

    def _once(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the scores of an ANN."""
        return self._best(scores).unsqueeze(1), scores

    def _best(self, scores: Tensor) -> Tensor:
        """The classes of the largest scores (N, K) on the CPU; of equal scores the first class, as argmax has it."""
        scores_NC = by_example(scores)
        wrong = int(scores_NC.isnan().any(1).sum())
        if wrong:
            raise EvaluationError(
                f"the network's outputs hold NaN for {wrong} of {len(scores_NC)} examples, so it predicts no class"
            )
        outputs = scores_NC.shape[1]
        if self.classes not in (None, outputs):
            raise EvaluationError(f"the network has {outputs} outputs, and the data have {self.classes} classes")
        order = torch.sort(scores_NC, dim=1, descending=True, stable=True).indices
        return order[:, : self.top].to("cpu", torch.int16 if outputs <= 2**15 else torch.int32)


def outputs_of(model: nn.Module, x: Any, name: str | None = None) -> Tensor:
    """Outputs of an ANN for a batch; of several the one with that name.

    Raises:
        EvaluationError: it cannot read the batch, or has no such output.
    """
    if isinstance(x, Sequences):
        raise EvaluationError(f"{type(model).__name__} is an ANN, which reads no sequences of unequal length")
    try:
        outputs = model(x)
    except RuntimeError as error:
        if isinstance(error, SpikepropError | torch.OutOfMemoryError):
            raise
        dtype = str(x.dtype).removeprefix("torch.")
        raise EvaluationError(
            f"{type(model).__name__} cannot read a batch of shape {tuple(x.shape)} in {dtype}, where axis 0 is the batch: {error}"
        ) from error
    chosen = chosen_output(outputs, name, type(model).__name__)
    if chosen.ndim == 0:
        raise EvaluationError(f"{type(model).__name__} returns one number; give a module that returns its outputs (B, ...)")
    return chosen


def chosen_output(result: Any, name: str | None, model: str = "the network") -> Tensor:
    """The tensor of that name in what a network returns: the keys, fields and numbers on the way to it, joined by dots.

    Args:
        result: a tensor, or a structure of tensors.
        name: None for the only one.
        model: whose result it is, for the error.

    Raises:
        EvaluationError: no such tensor, or several and no name.
    """
    tensors = {key: leaf for key, leaf in leaves(result) if isinstance(leaf, Tensor)}
    if name is None and len(tensors) == 1:
        return next(iter(tensors.values()))
    if name is not None and name in tensors:
        return tensors[name]
    there = ", ".join(map(repr, tensors)) or "none"
    asked = "choose one with output=:" if name is None else f"there is no output {name!r}:"
    raise EvaluationError(f"{asked} the tensors that {model} returns are {there}")


def simulated_steps(network: SpikingNetwork, x: Tensor, timesteps: Sequence[int], padded: bool) -> int | None:
    """The steps of a simulation: the largest of ``timesteps`` for still samples, None for sequences, which have their own.

    Args:
        network: that is simulated.
        x: as ``time_first`` gives it.
        timesteps: numbers of steps, ascending.
        padded: whether the sequences differ in length, so that one may be shorter than another's number of steps.

    Raises:
        EvaluationError: still samples without a number of steps, or with several and an encoder whose code depends on their
            number; or sequences that have fewer.
    """
    if x.dim() <= len(network.input_shape) + 1:
        if not timesteps:
            raise EvaluationError(
                f"a batch {tuple(x.shape)} of still samples needs numbers of steps, such as timesteps=[8]; only sequences "
                f"(B, T, {', '.join(map(str, network.input_shape))}) have their own"
            )
        if len(timesteps) > 1 and not network.encoder.stationary:
            kind = type(network.encoder).__name__
            raise EvaluationError(
                f"what {kind} sends depends on the number of steps, so the first {timesteps[0]} of {timesteps[-1]} steps are no "
                f"simulation of {timesteps[0]}: evaluate one number of steps at a time"
            )
        return timesteps[-1]
    if not padded:
        check_steps(timesteps, len(x))
    return None


def longest_of(network: SpikingNetwork, x: Any) -> int:
    """Steps of the longest sequence of a batch, examples first; 0 of still samples."""
    if isinstance(x, Sequences):
        return int(x.lengths.max())
    return x.shape[1] if x.dim() == len(network.input_shape) + 2 else 0


def check_steps(timesteps: Sequence[int], longest: int) -> None:
    """Refuse numbers of steps, ascending, beyond those of the longest sequence; ``longest`` 0: not known.

    Raises:
        EvaluationError: says how many there are.
    """
    if timesteps and 0 < longest < timesteps[-1]:
        raise EvaluationError(
            f"the sequences have {longest} steps, so there is no prediction after {timesteps[-1]}: leave timesteps out for all "
            f"of them, or give numbers up to {longest}"
        )


def _observed(network: SpikingNetwork, images: int, steps: int, meter: ActivityMeter, lengths: Tensor | None) -> dict[str, Any]:
    """How a simulation is unrolled while a meter counts its spikes."""
    chunk = watched_chunk(network, images, steps)
    return {"observe": meter.start(images, lengths), "observed_steps": meter.timesteps, "chunk": chunk}


def pack(batches: Sequence[BatchPredictions]) -> dict[str, Tensor]:
    """Several batches as tensors by name, to be written to one file."""
    return {
        "numbers": torch.tensor([b.number for b in batches]),
        "sizes": torch.tensor([len(b.labels) for b in batches]),
        "images": torch.tensor([b.images for b in batches]),
        "labels": torch.cat([b.labels for b in batches]),
        "best": torch.cat([b.best for b in batches]),
        "steps": torch.tensor([b.steps for b in batches]),
        "counted": torch.tensor([b.counted for b in batches]),
        "seconds": torch.tensor([b.seconds for b in batches], dtype=torch.float64),
        "counts": torch.cat([b.counts.unsqueeze(0) for b in batches if b.counted] or [torch.zeros(0)]),
        **({"early": torch.cat(early, 1)} if (early := [b.early for b in batches if b.early is not None]) else {}),
    }


def unpack(tensors: dict[str, Tensor]) -> list[BatchPredictions]:
    """The batches that were packed."""
    sizes = tensors["sizes"].tolist()
    counts = iter(tensors["counts"])
    early = tensors["early"].split(sizes, 1) if "early" in tensors else [None] * len(sizes)
    images = tensors.get("images", tensors["sizes"]).tolist()  # files of before hold images without positions alone
    steps = tensors.get("steps", torch.zeros_like(tensors["sizes"])).tolist()
    batches = [
        BatchPredictions(
            number=number, labels=labels, best=best, images=count, steps=t, counted=counted, seconds=seconds, early=left
        )
        for number, count, t, labels, best, counted, seconds, left in zip(
            tensors["numbers"].tolist(),
            images,
            steps,
            tensors["labels"].split(sizes),
            tensors["best"].split(sizes),
            tensors["counted"].tolist(),
            tensors["seconds"].tolist(),
            early,
        )
    ]
    return [replace(batch, counts=next(counts)) if batch.counted else batch for batch in batches]
