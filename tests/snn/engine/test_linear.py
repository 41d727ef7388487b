"""Fully connected layers on the engine: gradients of the weights over chunks, slices and threads equal the reference's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeprop import IF, Direct, Poisson, SpikingNetwork
from spikeprop.snn import INPUT, Encoder, Layer, Synapse
from spikeprop.snn.engine import batch, layout
from spikeprop.snn.synapse import SampleDropout


class Played(Encoder):
    """Other values at every step, not spikes."""

    def __call__(self, x_TB: torch.Tensor, first: int, last: int) -> torch.Tensor:
        return x_TB[first:last] * torch.rand(last - first, *x_TB.shape[1:], dtype=x_TB.dtype)


def network(encoder: Encoder) -> SpikingNetwork:
    torch.manual_seed(0)
    layers = {
        "one": Layer([(INPUT, Synapse([nn.Linear(12, 70)]))], IF(v_threshold=0.3)),
        "two": Layer([("one", Synapse([SampleDropout(0.3), nn.Linear(70, 64, bias=False)]))], IF(v_threshold=0.2)),
        "output": Layer([("two", Synapse([nn.Linear(64, 5)]))], None),
    }
    return SpikingNetwork(layers, encoder, (12,)).double().train()


def gradients(net: SpikingNetwork, x: torch.Tensor, **options: int) -> tuple[torch.Tensor, torch.Tensor]:
    net.zero_grad()
    torch.manual_seed(1)
    output = net(x, 12, **options)
    output.square().sum().backward()
    return output.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("encoder", [Poisson(), Direct(), Played()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("waits", [0, 1 << 20])
def test_gradients_over_chunks_slices_and_threads(
    encoder: Encoder, threads: int, size: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is settled at once, or after a chunk; slices of one sample and of all."""
    monkeypatch.setattr(layout, "WAITING_BYTES", waits)
    net, x = network(encoder), torch.rand(size, 12, dtype=torch.float64)
    net.packed = False
    wanted = gradients(net, x, chunk=4)
    net.packed = True
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for slice_samples in (lambda *_, **__: 1, lambda _, samples, *__, **___: samples):
            monkeypatch.setattr(batch, "slice_samples", slice_samples)
            for found, expected in zip(gradients(net, x, chunk=4), wanted):
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    finally:
        torch.set_num_threads(usual)
