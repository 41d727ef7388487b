"""``SpikeRecording``: the spikes, and on request the potentials, of a simulation, by layer; it is passed as ``observe=``.

    seen = snn.record(images[:4], timesteps=8, membranes=True)
    seen.spikes["features_0"]       # (T, B, ...), what each neuron sent at each step
    seen.membranes["features_0"]    # (T, B, ...), the potential after each step, its reset done

Potentials exist in the plain reference alone, where all layers advance together, one step after another. Suffix legend: T steps,
B batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spikeprop.errors import DataError
from spikeprop.runtime.modes import evaluating
from spikeprop.snn.watching import samples_for, watched_chunk

if TYPE_CHECKING:
    from spikeprop.snn.network import SpikingNetwork

LARGEST = 2**31  # bytes of all that is kept


class SpikeRecording:
    """Keeps what each layer sends, on the CPU; an observer for ``observe=``.

    Args:
        membranes: keep the potentials of neurons too.
        layers: names to keep; None for all, and the input.
        thresholds: of the layers, for pictures: above which potential a neuron fires, with a payload of 1.
    """

    def __init__(
        self,
        *,
        membranes: bool = False,
        layers: Collection[str] | None = None,
        thresholds: Mapping[str, Tensor] | None = None,
    ):
        self.layers = layers
        self.thresholds = dict(thresholds or {})
        self.membrane = self._keep_membrane if membranes else None  # the network asks for it
        self._spikes: dict[str, list[Tensor]] = {}
        self._membranes: dict[str, list[Tensor]] = {}
        self._bytes = 0

    def __call__(self, name: str, spikes_TB: Tensor) -> None:
        self._keep(self._spikes, name, spikes_TB)

    def _keep_membrane(self, name: str, v_TB: Tensor) -> None:
        self._keep(self._membranes, name, v_TB)

    def __repr__(self) -> str:
        shapes = {name: tuple(train_TB.shape) for name, train_TB in self.spikes.items()}
        return f"SpikeRecording of {shapes}" + (", with potentials" if self._membranes else "")

    @property
    def spikes(self) -> dict[str, Tensor]:
        """(T, B, ...) by layer, and "input" for what the encoder made."""
        return {name: torch.cat(parts) for name, parts in self._spikes.items()}

    @property
    def membranes(self) -> dict[str, Tensor]:
        """(T, B, ...) by layer of neurons that have a potential; empty where none were asked for."""
        return {name: torch.cat(parts) for name, parts in self._membranes.items()}

    def rates(self) -> dict[str, float]:
        """Share of the steps at which a neuron sends something, in the mean over neurons and samples, by layer."""
        return {name: float((spikes_TB != 0).double().mean()) for name, spikes_TB in self.spikes.items()}

    def _keep(self, kept: dict[str, list[Tensor]], name: str, some_TB: Tensor) -> None:
        if self.layers is not None and name not in self.layers:
            return
        self._bytes += some_TB.numel() * some_TB.element_size()
        if self._bytes > LARGEST:
            raise DataError(
                f"the recording is larger than {LARGEST / 2**30:.0f} GiB at layer {name!r}: record fewer samples or steps, or "
                "only some layers (layers=[...])"
            )
        copied_TB = some_TB.detach().cpu().clone()
        kept.setdefault(name, []).append(copied_TB + 0.0 if copied_TB.is_floating_point() else copied_TB)  # no -0


@torch.no_grad()
def record(
    network: SpikingNetwork, x: Any, timesteps: int | None, membranes: bool, layers: Collection[str] | None
) -> SpikeRecording:
    """``SpikingNetwork.record``: in evaluation mode, in which the network is not left if it was in training mode.

    Raises:
        DataError: an unknown layer, or more than can be kept.
    """
    known = ["input", *network.dynamics()]
    unknown = [name for name in layers or () if name not in known]
    if unknown:
        raise DataError(f"the network has no layer {unknown[0]!r} that sends spikes; it has {', '.join(known)}")
    thresholds = {name: neuron.spike_size.cpu() for name, neuron in network.neurons().items()}
    recording = SpikeRecording(membranes=membranes, layers=layers, thresholds=thresholds)
    given, lengths = samples_for(network, x)
    with evaluating(network):
        chunk = watched_chunk(network, len(x), timesteps or len(given))
        network(given, timesteps, lengths=lengths, chunk=chunk, observe=recording)
    return recording
