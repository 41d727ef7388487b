"""The settings in a recipe of the two pipelines: one frozen dataclass for each stage, and ``HybridSettings`` and
``ScratchSettings`` for all of a run.

Component slots have no default; what a recipe of the hybrid conversion may leave out is in ``experiment/completion.py``. The
default numbers are those of the paper (Rathi et al. 2020): SGD
1e-2, weight decay 5e-4, batch 64 and 300 epochs for the ANN; Adam 1e-4 with weight decay 5e-4 for fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from spikeprop_hardware.targets import target as found_target
from torch import nn
from torch.optim import Optimizer

from spikeprop.convert import ThresholdCalibrator
from spikeprop.data import ImageData, LabelledData
from spikeprop.errors import HardwareError, RecipeError
from spikeprop.evaluate.early_exit import EarlyExit
from spikeprop.experiment.completion import why_chosen
from spikeprop.experiment.optimizers import check_optimizer, optimizer_of
from spikeprop.learn import Callback, LearningRule, Schedule
from spikeprop.recipe import Component, Problems
from spikeprop.runtime.checks import positive
from spikeprop.runtime.devices import DEVICE
from spikeprop.snn import Encoder, Neuron, SpikingNetwork
from spikeprop.snn.readout import Read

Precision = Literal["float32", "bfloat16", "float16"]
Backend = Literal["lava", "reference"]
MemoryFormat = Literal["contiguous", "channels_last"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the ANN is trained.

    Attributes:
        rule: computes the gradients.
        optimizer: without lr and weight_decay, which have keys of their own.
        schedule: factor on the learning rate during training.
        epochs: passes over the training images; 0 keeps the ANN's initial weights (a pretrained model).
        batch_size: images a step.
        lr: learning rate of the optimiser.
        weight_decay: of the optimiser; 0 for none.
        clip: largest gradient norm, or null.
        drop_last: leave out a last batch of an epoch that has fewer images than ``batch_size``.
        memory_format: "channels_last" for the layout in which many processors, and GPUs in lower precision, convolve faster.
        callbacks: components, in the order in which they are called.
    """

    rule: Component[LearningRule]
    optimizer: Component[Optimizer]
    schedule: Component[Schedule]
    epochs: int = 300
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 5e-4
    clip: float | None = None
    drop_last: bool = False
    memory_format: MemoryFormat = "contiguous"
    callbacks: list[Component[Callback]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_training(self)

    def check(self) -> None:
        """Build every component once: RecipeError for a bad value."""
        _build_all(self, self.rule.build)
        if self.rule.build().needs_teacher:
            raise RecipeError(f"{self.rule.path}: trained from scratch, a network has no teacher; distil while fine-tuning")

    def build_optimizer(self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]]) -> Optimizer:
        """The optimiser with this stage's lr and weight decay."""
        return optimizer_of(self.optimizer, parameters, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """How the ANN becomes a spiking network.

    Attributes:
        neuron: copied for every layer.
        encoder: from image to the input of each step.
        calibrator: sets the thresholds.
        images: training images that the calibrator sees.
        timesteps: T that the network is converted for; neuron and calibrator that are not given are chosen for it.
        binary: keep to spikes of one bit, with a sign or without.
    """

    neuron: Component[Neuron]
    encoder: Component[Encoder]
    calibrator: Component[ThresholdCalibrator]
    images: int = 512
    timesteps: int | None = None
    binary: bool = False

    def __post_init__(self) -> None:
        positive(self, "images")
        if self.timesteps is None:
            return
        positive(self, "timesteps")
        own = self.calibrator.describe().get("timesteps", self.timesteps)
        if own != self.timesteps:
            kind = self.calibrator.use
            raise ValueError(f"timesteps is {self.timesteps}, and {kind} calibrates for {own}; give one of the two")

    def check(self) -> None:
        """Build every component once: RecipeError for a bad value."""
        problems = Problems()
        for slot in (self.neuron, self.encoder, self.calibrator):
            with problems.collected():
                built = slot.build()
                if self.binary and isinstance(built, Neuron) and built.payload > 1:
                    raise RecipeError(f"convert.binary: {slot.use} sends more than one bit; use binary=false, or another neuron")
        problems.raise_all()

    def describe_choice(self) -> dict[str, Any]:
        """Neuron and calibrator, the number of steps that this calibrates for, and why, where ``convert`` chooses these."""
        return {
            "calibrated_for": self.calibrator.build().calibrated_for,
            "neuron": self.neuron.describe(),
            "calibrator": self.calibrator.describe(),
            "why": why_chosen(self.neuron, self.calibrator, self.timesteps, self.binary),
        }


@dataclass(frozen=True, kw_only=True)
class FineTuningSettings:
    """How the spiking network is fine-tuned.

    Attributes:
        rule: computes the gradients; one that has ``timesteps`` and is not given any gets those of this stage.
        optimizer: without lr and weight_decay, which have keys of their own.
        schedule: factor on the learning rate during training.
        timesteps: steps of a simulation.
        start: SHA-256 of the fine-tuned network that is trained further, start.safetensors of the run folder, where
            ``spikeprop finetune`` puts it; null for the network that the run converts.
        dropout: probability of every dropout while fine-tuning; null keeps the ANN's.
        epochs: passes over the training images; 0 leaves fine-tuning out.
        batch_size: images a step.
        lr, weight_decay: as in training; lr and weight_decay also hold for trained thresholds and leaks.
        clip: largest gradient norm, or null.
        drop_last: leave out a last batch of an epoch that has fewer images than ``batch_size``.
        callbacks: components, in the order in which they are called.
    """

    rule: Component[LearningRule]
    optimizer: Component[Optimizer]
    schedule: Component[Schedule]
    timesteps: int
    start: str | None = None
    dropout: float | None = None
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-4
    weight_decay: float = 5e-4
    clip: float | None = None
    drop_last: bool = False
    callbacks: list[Component[Callback]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_training(self)
        positive(self, "timesteps")
        if self.start is not None and not self.epochs:
            raise ValueError("start names a network that is trained further, and epochs is 0; set start to null, or epochs")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it lies in [0, 1)")

    def check(self) -> None:
        """Build every component once: RecipeError for a bad value."""
        _build_all(self, self.build_rule)

    def build_rule(self) -> LearningRule:
        """The rule, with this stage's number of steps."""
        return self.rule.with_timesteps(self.timesteps).build()

    def build_optimizer(self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]]) -> Optimizer:
        """The optimiser with this stage's lr and weight decay."""
        return optimizer_of(self.optimizer, parameters, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class SpikingTrainingSettings(TrainingSettings):
    """How a spiking network is trained from scratch.

    Attributes:
        rule: computes the gradients; one that has ``timesteps`` and is not given any gets those of this stage.
        optimizer, schedule, epochs, batch_size, lr, weight_decay, clip, drop_last, callbacks: as in training an ANN.
        memory_format: "contiguous"; spiking networks have a layout of their own.
        timesteps: steps of a simulation of still samples; null for sequences, which have their own.
    """

    timesteps: int | None = None
    epochs: int = 50
    lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timesteps is not None:
            positive(self, "timesteps")
        if self.memory_format != "contiguous":
            raise ValueError("memory_format is for ANNs: spiking networks have a layout of their own; leave it out")

    def build_rule(self) -> LearningRule:
        """The rule, with this stage's number of steps."""
        return (self.rule if self.timesteps is None else self.rule.with_timesteps(self.timesteps)).build()


@dataclass(frozen=True, kw_only=True)
class AccuracySettings:
    """Where the accuracy of a trained spiking network is measured.

    Attributes:
        timesteps: numbers of steps, beside those of training, or of sequences all their own.
        batch_size: examples at once.
        early_exit: measure too how many steps examples need that leave once their prediction is certain, or with a
            ``confidence`` that is high enough; ``{}`` for certainty.
    """

    timesteps: list[int] = field(default_factory=list)
    batch_size: int = 200
    early_exit: EarlyExit | None = None

    def __post_init__(self) -> None:
        positive(self, "batch_size")
        if self.timesteps and min(self.timesteps) < 1:
            raise ValueError(f"timesteps is {self.timesteps}; each number of steps is at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(AccuracySettings):
    """Where the accuracy of the hybrid conversion's networks is measured.

    Attributes:
        timesteps: numbers of steps; finetune.timesteps is added. The converted network is measured at all, the fine-tuned one
            up to ``finetuned_up_to``.
        finetuned_up_to: largest number of steps for the fine-tuned network; default the largest of ``timesteps``.
        batch_size, early_exit: of images; as in ``AccuracySettings``.
    """

    timesteps: list[int]  # pyright: ignore[reportGeneralTypeIssues]
    finetuned_up_to: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timesteps:
            raise ValueError(f"timesteps is {self.timesteps}; give at least one number, each at least 1")
        if self.finetuned_up_to is not None:
            positive(self, "finetuned_up_to")


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """The check on Lava.

    Attributes:
        samples: test images that are simulated; 0 leaves the stage out.
        backend: "lava", or the "reference" simulator that equals it; a run takes the reference too where Lava cannot be had.
        target: chip that the network must fit before it is trained, and whose integers it is simulated in ("loihi2", "speck",
            ..., as of `check --target`); null for none, and floating point.
        bits: weight formats (2 to 8, "ternary") whose accuracy in integers the report compares, on ``bits_samples`` test images.
        bits_samples: of that comparison.
    """

    samples: int = 20
    backend: Backend = "lava"
    target: str | None = None
    bits: list[int | Literal["ternary"]] = field(default_factory=list)
    bits_samples: int = 1000

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples is {self.samples}; use 0 to leave the simulation out")
        if self.target is not None:
            try:
                found_target(self.target)
            except HardwareError as error:
                raise ValueError(f"target: {error}") from error

        if self.bits_samples < 1 or any(b not in (*range(2, 9), "ternary") for b in self.bits):
            raise ValueError(f"bits is {self.bits} on {self.bits_samples} samples; formats are 2 to 8 and ternary, on 1 or more")

    def check_fit(self, outline: Callable[[], SpikingNetwork]) -> None:
        """Raises RecipeError, with everything that stands in the way, if the network does not fit the target."""
        if self.target is not None and not (found := outline().fits(self.target)):
            raise RecipeError(f"simulate.target: the network {found}")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What all runs of a pipeline have.

    Attributes:
        seed: seeds everything random.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1"; a run may continue on another one.
        precision: of the synapses while training on CUDA ("bfloat16" and "float16" by autocast; the loss is not scaled, so
            prefer bfloat16). Potentials, weights and the optimiser stay in float32, and so does evaluation. On the CPU bfloat16
            needs a processor that multiplies it (AVX-512 BF16 or AMX), else training is in float32; there it holds for ANNs, and
            for spiking networks of images at up to 8 steps or with batch-norm, since packed spikes are multiplied in float32.
        sharded: with several processes, each keeps only its shard of what training keeps of the parameters (weights, gradients,
            optimiser state), for networks that do not fit into the memory of one; a run may continue with the other value.
    """

    seed: int = 0
    device: str = "auto"
    precision: Precision = "float32"
    sharded: bool = False

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"device is {self.device!r}; use auto, cpu, cuda or cuda:1")


@dataclass(frozen=True, kw_only=True)
class HybridSettings(RunSettings):
    """The settings of all stages of the hybrid conversion.

    Attributes:
        seed, device, precision, sharded: as of every run.
        data: the data set, for all stages.
        ann: the network that is trained and converted.
        train: how the ANN is trained.
        convert: how it becomes a spiking network.
        finetune: how the spiking network is fine-tuned.
        evaluate: where accuracy is measured.
        simulate: the check on Lava; left out without the section.
    """

    data: Component[ImageData]
    ann: Component[nn.Module]
    train: TrainingSettings
    convert: ConversionSettings
    finetune: FineTuningSettings
    evaluate: EvaluationSettings
    simulate: SimulationSettings = SimulationSettings(samples=0)


@dataclass(frozen=True, kw_only=True)
class ScratchSettings(RunSettings):
    """The settings of all stages of training a spiking network from scratch.

    Attributes:
        seed, device, precision, sharded: as of every run.
        data: the data set, for all stages; still samples, or sequences.
        model: a module with neurons where non-linearities stand, such as ``SpikingCNN``.
        encoder: from sample to the input of each step.
        read: how the last layer's values make the output: sum, mean, last or max.
        train: how the network is trained.
        evaluate: where accuracy is measured.
        simulate: the check on Lava; left out without the section.
    """

    data: Component[LabelledData]
    model: Component[nn.Module]
    encoder: Component[Encoder]
    read: Read = "sum"
    train: SpikingTrainingSettings
    evaluate: AccuracySettings = AccuracySettings()
    simulate: SimulationSettings = SimulationSettings(samples=0)


def _check_training(settings: TrainingSettings | FineTuningSettings) -> None:
    positive(settings, "batch_size")
    positive(settings, "lr")
    check_optimizer(settings.optimizer)
    if settings.epochs < 0:
        raise ValueError(f"epochs is {settings.epochs}; use 0 to skip training")
    if not settings.weight_decay >= 0:
        raise ValueError(f"weight_decay is {settings.weight_decay}; use 0 for none")
    if settings.clip is not None and not settings.clip > 0:
        raise ValueError(f"clip is {settings.clip}; it is the largest gradient norm, so it is positive, or null for no limit")


def _build_all(settings: TrainingSettings | FineTuningSettings, build_rule: Callable[[], LearningRule]) -> None:
    problems = Problems()
    for build in (build_rule, settings.schedule.build, lambda: trial_optimizer(settings), *(c.build for c in settings.callbacks)):
        with problems.collected():
            build()
    problems.raise_all()


def trial_optimizer(settings: TrainingSettings | FineTuningSettings) -> Optimizer:
    """A stage's optimiser over one parameter, to check its settings."""
    return settings.build_optimizer([nn.Parameter(torch.zeros(1, 1))])
