"""Currents of one layer, kept while only its biases change.

A calibrator that corrects biases runs a layer's neurons twice on the same spikes: to see their error, and with the bias that
compensates it. The second current is the first, plus the change of the bias. What is kept is limited; the rest is computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.layer import Layer
from spikeprop.snn.synapse import WEIGHTED

KEPT_BYTES = 1 << 30
Chunk = tuple[int, int, Tensor]  # first step, last step, current (K or 1, B, S, C)


class KeptCurrents:
    """Currents of the layer that was run last.

    Args:
        layer: as it is when its currents are computed; None for none.
        buffers: where their memory goes back to.
        room: bytes that may be kept.
    """

    def __init__(self, layer: Layer | None, buffers: BufferPool, room: int):
        self._layer, self._buffers, self._room = layer, buffers, room
        state = layer.synapses.state_dict() if layer is not None else {}
        self._state = {name: value.clone() for name, value in state.items()}
        self._chunks: dict[tuple[int, int], list[Chunk]] = {}
        self._held: dict[int, Tensor] = {}  # by address; a current that stays the same is in several chunks

    def serves(self, layer: Layer) -> bool:
        """Whether what is kept is this layer's; if its biases alone have changed since, their change is added to all currents."""
        if layer is not self._layer:
            return False
        vectors = all(current_KBSC.shape[2] == 1 for current_KBSC in self._held.values())
        state, biases = layer.synapses.state_dict(), _last_biases(layer, vectors)
        if state.keys() != self._state.keys():
            return False
        if not all(torch.equal(value, self._state[name]) for name, value in state.items() if name not in biases):
            return False
        for name in biases:
            change_C = state[name] - self._state[name]
            if change_C.any():
                self._state[name] = state[name].clone()
                for current_KBSC in self._held.values():
                    current_KBSC += change_C
        return True

    def drop(self) -> None:
        """Give all memory back."""
        for current_KBSC in self._held.values():
            self._buffers.give(current_KBSC)
        self._chunks, self._held = {}, {}

    def of(self, samples: slice, steps: int) -> list[Chunk] | None:
        """All chunks of these samples up to step ``steps``, or None where they are not kept."""
        chunks = self._chunks.get((samples.start, samples.stop), [])
        return chunks if chunks and chunks[-1][1] == steps else None

    def keep(self, samples: slice, chunk: Chunk) -> None:
        """Keep the next chunk of these samples, as long as there is room."""
        current_KBSC = chunk[2]
        if current_KBSC.data_ptr() not in self._held:
            size = current_KBSC.numel() * current_KBSC.element_size()
            if size > self._room:
                self._room = 0  # those that are kept stay complete
                return
            self._room -= size
            self._held[current_KBSC.data_ptr()] = current_KBSC
        self._chunks.setdefault((samples.start, samples.stop), []).append(chunk)

    def holds(self, current_KBSC: Tensor) -> bool:
        """Whether this memory is kept."""
        return current_KBSC.data_ptr() in self._held


def _last_biases(layer: Layer, vectors: bool) -> set[str]:
    """The names, in ``layer.synapses``, of biases that are added to the current's channels and to nothing before it."""
    kinds = WEIGHTED if vectors else tuple(kind for kind in WEIGHTED if kind is not nn.Linear)  # one of tokens has no channels
    found = set()
    for i, _, synapse in layer.branches():
        *_, last = [(None, None), *enumerate(synapse)]
        if isinstance(last[1], kinds) and last[1].bias is not None:
            found.add(f"{i}.ops.{last[0]}.bias")
    return found
