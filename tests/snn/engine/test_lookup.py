"""Convolutions by tables of sums, spike counts over time, and currents that are kept while biases change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeprop.snn import IF, Layer, Synapse
from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kept_currents import KeptCurrents
from spikeprop.snn.engine.kernels import cpu, lookup, payload_loops, register_tables
from spikeprop.snn.engine.kernels.cpu import Affine
from spikeprop.snn.engine.kernels.totals import signed_counts, spike_counts
from spikeprop.snn.engine.kernels.words import channels_last, pack


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "padding"),
    [(16, 16, (6, 5), 3, 1, 1), (6, 32, (7, 4), 3, 2, 1), (33, 64, (5, 5), 1, 1, 0), (3, 96, (8, 3), 5, 1, 2)],
)
def test_looked_up_currents_are_the_convolution(
    channels: int, outputs: int, size: tuple[int, int], kernel: int, stride: int, padding: int, signed: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, outputs, kernel, stride, padding).double()
    spikes = (torch.rand(5, channels, *size) < 0.3).double()
    if signed:
        spikes *= torch.randn_like(spikes).sign()
    flat = channels_last(spikes, 1)[0]
    tables = lookup.make_tables(conv.weight, signed=signed)
    assert tables is not None
    wanted = conv(spikes).detach()
    out = torch.empty(5, wanted[0, 0].numel(), outputs, dtype=torch.float64)
    source = flat.to(torch.int8) if signed else pack(flat)
    assert conv.bias is not None
    lookup.conv(
        source, size, tables, (stride, stride), (padding, padding), Affine(1.0, conv.bias.detach()), tuple(wanted.shape[2:]), out
    )
    torch.testing.assert_close(out, channels_last(wanted, 1)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not register_tables.available(), reason="AVX-512 is needed for tables in registers")
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "padding", "images"),
    [(16, 16, (6, 5), 3, 1, 1, 32), (7, 8, (7, 4), 3, 2, 1, 45), (33, 64, (5, 5), 1, 1, 0, 64), (3, 96, (8, 3), 5, 1, 2, 33)],
)
def test_currents_from_tables_in_registers_are_the_convolution(
    channels: int, outputs: int, size: tuple[int, int], kernel: int, stride: int, padding: int, images: int, signed: bool
) -> None:
    """Weights that are multiples of 1/64 make every sum exact: equal to the bit."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, outputs, kernel, stride, padding).requires_grad_(False)
    for parameter in conv.parameters():
        parameter.copy_((parameter * 64).round() / 64)
    spikes = (torch.rand(images, channels, *size) < 0.3).float()
    if signed:
        spikes *= torch.randn_like(spikes).sign()
    flat = channels_last(spikes, 1)[0]
    tables = register_tables.make_tables(conv.weight, signed=signed)
    assert tables is not None
    wanted = conv(spikes)
    out = torch.empty(images, wanted[0, 0].numel(), outputs)
    source = flat.to(torch.int8) if signed else pack(flat)
    assert conv.bias is not None
    affine = Affine(1.0, conv.bias.detach())
    out_size = (wanted.shape[2], wanted.shape[3])
    register_tables.conv(source, size, tables, (stride, stride), (padding, padding), affine, out_size, out)
    assert torch.equal(out, channels_last(wanted, 1)[0])


@pytest.mark.parametrize(("channels", "outputs", "size", "kernel", "padding"), [(5, 64, (4, 3), 3, 1), (33, 32, (5, 6), 5, 2)])
def test_currents_spike_by_spike_of_payloads_are_the_convolution(
    channels: int, outputs: int, size: tuple[int, int], kernel: int, padding: int
) -> None:
    """Also of the largest and the least int8; weights that are multiples of 1/64 make every sum exact."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, outputs, kernel, padding=padding).requires_grad_(False)
    for parameter in conv.parameters():
        parameter.copy_((parameter * 64).round() / 64)
    payloads = torch.randint(-128, 128, (3, channels, *size)) * (torch.rand(3, channels, *size) < 0.4)
    payloads[:2] = payloads[:2].sign()
    payloads[1, :, 1] = 0
    weight, bias = cpu.tap_weight(conv.weight), conv.bias
    assert weight is not None
    assert bias is not None
    wanted = conv(payloads.float())
    out, out_size = torch.empty(3, wanted[0, 0].numel(), outputs), (wanted.shape[2], wanted.shape[3])
    small = channels_last(payloads, 1)[0].to(torch.int8)
    payload_loops.conv(small, size, weight, (padding, padding), Affine(0.5, bias), out_size, out)
    assert torch.equal(out, channels_last((wanted - bias[:, None, None]) / 2 + bias[:, None, None], 1)[0])


def test_spikes_on_a_path_around_a_layer_are_added_as_torch_adds_them() -> None:
    torch.manual_seed(0)
    small, gain, total = torch.randint(-7, 8, (2, 3, 4, 5), dtype=torch.int8), torch.randn(5), torch.randn(2, 3, 4, 5)
    wanted = total + small.float() * gain
    cpu.add_scaled(small, gain, total)
    assert torch.equal(total, wanted)


def test_no_tables_for_odd_numbers_of_outputs_and_for_wide_layers() -> None:
    assert lookup.make_tables(torch.zeros(10, 4, 3, 3), signed=False) is None
    assert lookup.make_tables(torch.zeros(16, 2048, 3, 3), signed=False) is None


def test_spikes_are_counted_over_time() -> None:
    torch.manual_seed(0)
    spikes = (torch.rand(9, 3, 4, 37) < 0.4).float()
    assert torch.equal(spike_counts(pack(spikes), 37, torch.float32), spikes.sum(0))
    graded = torch.randint(-7, 8, (9, 3, 4, 37), dtype=torch.int8)
    assert torch.equal(signed_counts(graded, torch.float32), graded.sum(0).float())


def test_kept_currents_follow_the_biases_and_nothing_else() -> None:
    linear = nn.Linear(3, 2)
    layer = Layer([("input", Synapse([linear]))], IF())
    kept = KeptCurrents(layer, BufferPool(torch.device("cpu")), room=100)
    current = torch.zeros(2, 1, 1, 2)
    kept.keep(slice(0, 1), (0, 2, current))
    kept.keep(slice(1, 2), (0, 2, torch.zeros(50, 1, 1, 2)))  # no room
    linear.bias.data += torch.tensor([1.0, -2.0])
    assert kept.serves(layer)
    assert torch.allclose(current, torch.tensor([1.0, -2.0]).expand_as(current))
    assert kept.of(slice(0, 1), 2) is not None
    assert kept.of(slice(0, 1), 3) is None
    assert kept.of(slice(1, 2), 2) is None
    linear.weight.data[0, 0] += 1
    assert not kept.serves(layer)
    assert not kept.serves(Layer([("input", Synapse([linear]))], IF()))
