"""The stage ``finetune``: the converted network is trained with spikes."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from spikeprop.errors import CheckpointError, SilentNetworkWarning
from spikeprop.evaluate import silent_layers
from spikeprop.experiment.stages.stage import PipelineRun
from spikeprop.experiment.stages.training import train
from spikeprop.learn import CollapseGuard, LearningRule
from spikeprop.runtime.files import file_hash
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.signed import takes_back

SILENCE_IMAGES = 32  # on which it is tested whether every layer fires


def finetune_network(run: PipelineRun) -> dict[str, Any]:
    """Fine-tune the converted network, or one that was fine-tuned before; the checkpoint is ``finetuned.safetensors``.

    Without epochs there is no such stage.
    """
    settings = run.settings.finetune
    network = _start(run).to(run.device)
    _remove_delay(run, network)
    if settings.dropout is not None:
        network.set_dropout(settings.dropout)
    said = _warn_of_silence(run, network)
    guard = CollapseGuard(run.data.classes)
    with warnings.catch_warnings():
        if said:
            warnings.simplefilter("ignore", SilentNetworkWarning)  # said above, in the recipe's words
        history = train(run, "finetune", network, settings, _rule(run), run.settings.seed + 2, guard)
    run.save(network, "finetuned")
    return {"history": history}


def _start(run: PipelineRun) -> SpikingNetwork:
    """The network that is trained."""
    expected = run.settings.finetune.start
    if expected is None:
        return run.load_spiking("converted")
    file = run.checkpoint("start")
    if not file.is_file() or file_hash(file) != expected:
        raise CheckpointError(
            f"{file} is not the network that finetune.start names ({expected[:12]}...): bring it back, or run "
            "`spikeprop finetune` again with the folder of the run that fine-tuned it"
        )
    return run.load_spiking("start")


def _rule(run: PipelineRun) -> LearningRule:
    """The stage's rule; what its loss may ask (``Distillation``) is the ANN, in the layout in which images convolve fastest."""
    rule = run.settings.finetune.build_rule()
    if not rule.needs_teacher:
        return rule
    ann: Any = run.load("ann")
    return rule.taught_by(ann.to(run.device, memory_format=torch.channels_last))


def _remove_delay(run: PipelineRun, network: SpikingNetwork) -> None:
    """Training uses the output of all steps, so a delayed readout and a pre-run, which calibration chose, are removed."""
    if not network.readout.trivial:
        run.context.notify("fine-tuning trains the sum over all steps: the delay that calibration chose is removed")
        network.readout.set()


def _warn_of_silence(run: PipelineRun, network: SpikingNetwork) -> bool:
    """Name the layers that do not fire, if gradient needs that: graded neurons pass it without spikes."""
    timesteps = run.settings.finetune.timesteps
    images, _ = next(run.data.test(SILENCE_IMAGES).epoch(0))
    silent = [n for n in silent_layers(network, images, timesteps) if not takes_back(network.dynamics()[n])]
    if silent:
        run.context.notify(
            f"warning: within finetune.timesteps={timesteps} no neuron of {', '.join(silent)} fires, so no gradient passes; "
            "raise finetune.timesteps or lower the calibrator's scale"
        )
    return bool(silent)
