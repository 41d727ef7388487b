"""What a recipe of the hybrid conversion says: one frozen dataclass a stage.

Component slots have no default, so a recipe is complete. Defaults that are numbers are the paper's (Rathi et al. 2020): SGD 1e-2,
weight decay 5e-4, batch 64 and 300 epochs for the ANN; Adam 1e-4 with weight decay 5e-4 for fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from spikeprop.convert import ThresholdCalibrator
from spikeprop.learn import LearningRule, Schedule
from spikeprop.recipe import Component
from spikeprop.snn import Encoder, Neuron


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the ANN is trained.

    Attributes:
        rule, optimizer, schedule: components; the optimiser's own keys without lr and weight_decay.
        epochs: passes over the training images; 0 keeps the weights as the ANN brings them (a pretrained model).
        batch_size: images a step.
        lr, weight_decay: of the optimiser.
        clip: largest gradient norm, or null.
    """

    rule: Component[LearningRule]
    optimizer: Component[Optimizer]
    schedule: Component[Schedule]
    epochs: int = 300
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 5e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_training(self)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How the ANN becomes a spiking network.

    Attributes:
        neuron, encoder, calibrator: components.
        images: training images that the calibrator sees.
    """

    neuron: Component[Neuron]
    encoder: Component[Encoder]
    calibrator: Component[ThresholdCalibrator]
    images: int = 512

    def __post_init__(self) -> None:
        _positive(self, "images")


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How the spiking network is fine-tuned.

    Attributes:
        rule, optimizer, schedule: components; the rule is given ``timesteps``.
        timesteps: steps of a simulation.
        dropout: probability of every dropout while fine-tuning; null keeps the ANN's.
        epochs, batch_size, lr, weight_decay, clip: as in training.
    """

    rule: Component[LearningRule]
    optimizer: Component[Optimizer]
    schedule: Component[Schedule]
    timesteps: int
    dropout: float | None = None
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-4
    weight_decay: float = 5e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        _check_training(self)
        _positive(self, "timesteps")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it lies in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Where accuracy is measured.

    Attributes:
        timesteps: numbers of steps, for the converted network and, up to ``finetuned_up_to``, the fine-tuned one.
        finetuned_up_to: largest number of steps for the fine-tuned network; default the largest of ``timesteps``.
        batch_size: images at once.
    """

    timesteps: list[int]
    finetuned_up_to: int | None = None
    batch_size: int = 200

    def __post_init__(self) -> None:
        _positive(self, "batch_size")
        if not self.timesteps or min(self.timesteps) < 1:
            raise ValueError(f"timesteps is {self.timesteps}; give at least one number, each at least 1")


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """The check on Lava.

    Attributes:
        samples: test images that are simulated; 0 leaves the stage out.
    """

    samples: int = 20

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples is {self.samples}; use 0 to leave the simulation out")


def _check_training(settings: Training | FineTuning) -> None:
    _positive(settings, "batch_size")
    _positive(settings, "lr")
    if settings.epochs < 0:
        raise ValueError(f"epochs is {settings.epochs}; use 0 to skip training")


def _positive(settings: object, name: str) -> None:
    if not getattr(settings, name) > 0:
        raise ValueError(f"{name} is {getattr(settings, name)}; it must be positive")
