"""spikeprop: from recipe to neuromorphic chip.

A network is trained as an ANN, converted to spikes by balancing thresholds, fine-tuned with spike-timing-dependent
backpropagation (STDB, Rathi et al. 2020), evaluated at any number of time steps, and written as NIR for Lava/Loihi-style
processes::

    import torch, spikeprop as sp

    data = sp.Digits()
    ann = sp.CNN(input_shape=(1, 8, 8), classes=10, plan=[32, "A", 64, "A"], hidden=[64])
    sgd = torch.optim.SGD(ann.parameters(), lr=0.1, momentum=0.9)
    sp.fit(ann, sp.Backprop(), data.train(32, seed=0), sgd, epochs=30)

    images = [x for x, _ in data.train(512, seed=1).epoch(0)]
    snn = sp.convert(ann, images, sp.IF(), sp.ThresholdBalancing(scale=0.5))
    adam = torch.optim.Adam(snn.parameters(), lr=1e-4, amsgrad=True)
    sp.fit(snn, sp.BPTT(timesteps=8), data.train(32, seed=2), adam, epochs=5)
    print(sp.snn_accuracy(snn, data.test(100).epoch(0), timesteps=[4, 8]))

The same as one command: ``spikeprop run digits_cnn_stdb``.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikeprop.ann import CNN, MLP, VGG, ResNet
    from spikeprop.convert import (
        AdvancedCalibration,
        LearnedCeiling,
        LeastError,
        LeastSquares,
        LightCalibration,
        LocalThresholdBalancing,
        MaxActivation,
        OffsetSpike,
        Percentile,
        ThresholdBalancing,
        ThresholdIteration,
        convert,
        spiking,
    )
    from spikeprop.data import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST
    from spikeprop.evaluate import Report, ann_accuracy, ann_error, plot, snn_accuracy, snn_error
    from spikeprop.learn import BPTT, Backprop, History, fit
    from spikeprop.snn import (
        ALIF,
        IF,
        LIF,
        PLIF,
        RLIF,
        STDB,
        ATan,
        CubaLIF,
        Delta,
        Direct,
        FastSigmoid,
        Frames,
        GradedIF,
        Integrator,
        Latency,
        MultiGaussian,
        Neuron,
        Poisson,
        Recurrent,
        Sigmoid,
        SignedIF,
        SpikeRecording,
        SpikingNetwork,
        TemporalBatchNorm,
        ThresholdBatchNorm,
        Triangle,
        spike,
    )

__version__ = "0.1.0"
__all__ = [
    "ALIF",
    "BPTT",
    "CIFAR10",
    "CIFAR100",
    "CNN",
    "IF",
    "LIF",
    "MLP",
    "MNIST",
    "PLIF",
    "RLIF",
    "STDB",
    "VGG",
    "ATan",
    "AdvancedCalibration",
    "Backprop",
    "CubaLIF",
    "Delta",
    "Digits",
    "Direct",
    "FashionMNIST",
    "FastSigmoid",
    "Frames",
    "GradedIF",
    "History",
    "Integrator",
    "Latency",
    "LearnedCeiling",
    "LeastError",
    "LeastSquares",
    "LightCalibration",
    "LocalThresholdBalancing",
    "MaxActivation",
    "MultiGaussian",
    "Neuron",
    "OffsetSpike",
    "Percentile",
    "Poisson",
    "Recurrent",
    "Report",
    "ResNet",
    "Sigmoid",
    "SignedIF",
    "SpikeRecording",
    "SpikingNetwork",
    "TemporalBatchNorm",
    "ThresholdBalancing",
    "ThresholdBatchNorm",
    "ThresholdIteration",
    "Triangle",
    "ann_accuracy",
    "ann_error",
    "convert",
    "explain_conversion",
    "fit",
    "folded",
    "from_nir",
    "load",
    "plot",
    "save",
    "snn_accuracy",
    "snn_error",
    "spike",
    "spiking",
    "to_nir",
]


_ROOMS = ("ann", "convert", "data", "evaluate", "learn", "snn")  # where the other names are
_LAZY = {
    "to_nir": ("spikeprop.deploy", "to_nir"),
    "from_nir": ("spikeprop.deploy", "from_nir"),
    "explain_conversion": ("spikeprop.experiment.diagnosis", "explain_conversion"),
    "folded": ("spikeprop.snn.folding", "folded"),
    "plot": ("spikeprop.evaluate", "plot"),
    "save": ("spikeprop.experiment.network_checkpoint", "save"),
    "load": ("spikeprop.experiment.network_checkpoint", "load"),
}


def __getattr__(name: str) -> Any:
    """Import a room when one of its names is used: torch takes seconds, and ``spikeprop --version`` does not need it."""
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    if name in (*_ROOMS, "errors", "recipe") and name != "convert":
        return import_module(f"spikeprop.{name}")
    for room in _ROOMS if name in __all__ else ():
        found = vars(import_module(f"spikeprop.{room}"))
        if name in found["__all__"]:  # and not a module of the room, such as ann/spiking.py
            return globals().setdefault(name, found[name])
    raise AttributeError(f"module 'spikeprop' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Also the names that are imported when they are used, for tab completion."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This module, in which the function ``convert`` is not replaced by the room of that name when that is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "convert" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
