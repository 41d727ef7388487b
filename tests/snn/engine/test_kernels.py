"""The CPU kernels' parts, each against plain torch: Winograd's gradient, products, transposition, buffers memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from numba.core.errors import TypingError
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import cpu, packed_reference, winograd
from spikeprop.snn.engine.kernels.arguments import PackedSpikes, ScanParameters
from spikeprop.snn.engine.kernels.dense import matmul
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import pack
from spikeprop.snn.surrogate import Triangle


@pytest.mark.parametrize(("size", "padding"), [((8, 8), 1), ((7, 9), 1), ((5, 6), 0), ((4, 3), 2), ((1, 2), 1)])
@pytest.mark.parametrize("block", [1, 4 << 20], ids=["image by image", "all at once"])
def test_winograd_gives_the_gradients_of_the_input_and_the_weights(
    size: tuple[int, int], padding: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "TILES_BYTES", (block, block))
    torch.manual_seed(0)
    images, outputs, channels = 3, 20, 13
    height, width = size[0] + 2 - 2 * padding, size[1] + 2 - 2 * padding
    weight, grad = torch.randn(outputs, channels, 3, 3), torch.randn(images, outputs, *size)
    wanted = conv2d_input((images, channels, height, width), weight.double(), grad.double(), padding=padding)
    out = torch.full((images, height * width, channels), torch.nan)
    flat = grad.permute(0, 2, 3, 1).reshape(images, -1, outputs)
    transformed, buffers = winograd.transformed(weight, 2), BufferPool(out.device)
    winograd.input_grad(flat, size, transformed, (padding, padding), out, (height, width), buffers)
    found = out.view(images, height, width, channels).permute(0, 3, 1, 2)
    assert float((found - wanted).norm() / wanted.norm()) < 3e-6
    values = torch.randn(images, channels, height, width)
    wanted = conv2d_weight(values.double(), (outputs, channels, 3, 3), grad.double(), padding=padding)
    read = values.permute(0, 2, 3, 1).reshape(images, -1, channels)
    found = winograd.weight_grad(read, (height, width), flat, size, (padding, padding), buffers)
    assert float((found - wanted).norm() / wanted.norm()) < 3e-6


def test_winograd_serves_wide_single_precision_3x3_convolutions_only() -> None:
    wide = torch.empty(128, 128, 3, 3)
    one, two = (1, 1), (2, 2)
    size = (8, 8)
    assert winograd.serves(wide, one, two, one, size)
    assert not winograd.serves(wide, one, (1, 3), one, size)
    assert not winograd.serves(wide.double(), one, one, one, size)
    assert not winograd.serves(wide, two, one, one, size)
    assert not winograd.serves(wide, one, one, two, size)
    assert not winograd.serves(wide[:32], one, one, one, size)
    assert not winograd.serves(torch.empty(128, 128, 5, 5), one, one, one, size)
    assert not winograd.serves(wide, one, one, one, (2, 2))  # a quarter of a tile


@pytest.mark.parametrize("channels", [1, 49, 64])
@pytest.mark.parametrize("to_zero", [False, True], ids=["subtract", "zero"])
@pytest.mark.parametrize("by_position", [False, True])
def test_the_triangles_scan_is_the_general_one(channels: int, to_zero: bool, by_position: bool) -> None:
    """With pooling and dropout, and gradients of threshold and leak; over the potentials."""
    torch.manual_seed(0)
    steps, batch, side, surrogate = 4, 3, 4, Triangle(height=0.7)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, channels, dtype=torch.float64)

    words = pack((torch.rand(steps, batch, side**2, channels) < 0.4).double())
    x, before, grad_v = numbers(steps, batch, side**2), numbers(batch, side**2), numbers(batch, side**2)
    rows = side**2 if by_position else 1
    neurons = ScanParameters(numbers(rows).abs() + 0.5, numbers(rows), to_zero)
    gradient = Gradient(numbers(steps, batch, side), side, 2, numbers(batch, side**2))
    grad, grad_v_too = gradient.dense().contiguous(), grad_v.clone()
    slopes = surrogate(x, x)
    wanted = packed_reference.scan_back_trained(grad, grad_v, words, slopes, x, before, neurons, (True, True))
    found = cpu.scan_back_triangle(gradient, grad_v_too, words, x, before, neurons, surrogate.height, (True, True))
    pairs = ((x, grad), (grad_v_too, grad_v), (found.theta_RC, wanted.theta_RC), (found.leak_RC, wanted.leak_RC))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products(dtype: torch.dtype) -> None:
    a, b = torch.randn(7, 40, dtype=dtype), torch.randn(40, 19, dtype=dtype)
    tight = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for left, right in ((a, b), (b.T, a.T), (a, b.contiguous().T.contiguous().T)):
        torch.testing.assert_close(matmul(left, right).double(), left.double() @ right.double(), rtol=tight, atol=tight)


@pytest.mark.parametrize(("outputs", "channels", "positions"), [(37, 5, 18), (128, 3, 70), (192, 90, 1), (1, 1, 1), (64, 2, 64)])
def test_a_linear_layers_weights_in_blocks(outputs: int, channels: int, positions: int) -> None:
    weight = torch.randn(outputs, channels * positions)
    found_PXCJ = cpu.linear_weight(weight, channels)
    assert found_PXCJ.is_contiguous()
    assert torch.equal(found_PXCJ.permute(1, 3, 2, 0).reshape(outputs, -1), weight)


def test_scratch_memory_is_used_again_and_never_twice_at_once() -> None:
    buffers = BufferPool(torch.device("cpu"))
    first = buffers.take((4, 8), torch.float32)
    second = buffers.take((4, 8), torch.float32)
    assert first.data_ptr() != second.data_ptr()
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())
    place = first.data_ptr()
    buffers.give(first)
    buffers.give(first)  # what is not taken is nobody's: nothing happens
    buffers.give(torch.empty(3))
    smaller = buffers.take((3, 2), torch.float64)
    assert smaller.data_ptr() == place
    assert buffers.take((4, 8), torch.float32).data_ptr() not in (place, second.data_ptr())


@pytest.mark.parametrize("channels", [1, 7, 31, 32, 33, 48, 70, 96])
@pytest.mark.parametrize("steps_of_current", [1, 5])
def test_neurons_fire_as_the_references_do(channels: int, steps_of_current: int) -> None:
    """All lengths of vectors, thresholds for a layer and for each neuron, both resets, with and without the potentials."""
    torch.manual_seed(0)
    shape = (2, 6, channels)
    for rows, to_zero, potential in itertools.product((1, 6), (False, True), (False, True)):
        if potential and steps_of_current == 1:
            continue  # the potentials of all steps need room
        current = torch.rand(steps_of_current, *shape)
        theta, leak = torch.rand(rows, channels) + 0.5, torch.rand(rows, channels)
        found = []
        for kernels in (cpu, packed_reference):
            v, words, own = torch.full(shape, 0.25), torch.empty(5, 2, 6, -(-channels // 32), dtype=torch.int32), current.clone()
            count = kernels.scan(own, v, ScanParameters(theta, leak, to_zero), words, potential=potential)
            found.append((count, v, words, own))
        assert found[0][0] == found[1][0]
        for ours, theirs in zip(found[0][1:], found[1][1:]):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("channels", "outputs"), [(3, 1), (33, 70), (64, 128), (40, 15), (35, 96), (3, 48)])
@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0], ids=lambda rate: f"rate {rate}")
@pytest.mark.parametrize("pool", [1, 2])
def test_currents_spike_by_spike_are_the_dense_ones(channels: int, outputs: int, rate: float, pool: int) -> None:
    """Weights that are multiples of 1/64 make every sum exact."""
    torch.manual_seed(0)
    steps, batch, size = 2, 3, (8, 6)
    positions, pooled = size[0] * size[1], (size[0] // pool, size[1] // pool)
    words = pack((torch.rand(steps, batch, positions, channels) < rate).float())
    spikes = PackedSpikes(words, size, channels, pool, None, None)
    images = cpu.pooled(spikes, torch.float32).flatten(0, 1).unflatten(1, pooled).permute(0, 3, 1, 2)
    weight = (torch.randn(outputs, channels, 3, 2) * 64).round() / 64
    affine = cpu.Affine(1 / pool**2, (torch.randn(outputs) * 64).round() / 64)
    wanted = F.conv2d(images, weight, affine.bias_O, padding=(2, 1))
    for by_tap, laid_out in ((False, cpu.event_weight(weight)), (True, cpu.tap_weight(weight))):
        if laid_out is None:
            continue
        out = torch.full((steps, batch, wanted.shape[2] * wanted.shape[3], outputs), torch.nan)
        cpu.event_conv(spikes, laid_out, (2, 1), affine, (wanted.shape[2], wanted.shape[3]), out, by_tap=by_tap)
        assert torch.equal(out.flatten(0, 1), wanted.flatten(2).transpose(1, 2))
    linear = (torch.randn(outputs, channels * pooled[0] * pooled[1]) * 64).round() / 64
    summed = torch.full((steps, batch, 1, outputs), torch.nan)
    cpu.event_linear(spikes, cpu.linear_weight(linear, channels), affine, summed)
    assert torch.equal(summed.flatten(0, 2), images.flatten(1) @ linear.T + affine.bias_O)


@pytest.mark.parametrize(("channels", "outputs"), [(3, 1), (33, 70), (64, 128)])
@pytest.mark.parametrize("together", [1, 1 << 16], ids=["image by image", "all at once"])
@pytest.mark.parametrize("pool", [1, 2])
def test_a_weights_gradient_spike_by_spike_is_the_dense_one(
    channels: int, outputs: int, together: int, pool: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that are multiples of 1/64 make every sum exact; weights in one block and in several."""
    monkeypatch.setattr(cpu, "CACHE_BYTES", 1 << 14)
    monkeypatch.setattr(cpu, "TARGETS", together)
    torch.manual_seed(0)
    images, size = 5, (8, 6)
    pooled, out_size = (size[0] // pool, size[1] // pool), (size[0] // pool + 2, size[1] // pool + 1)
    words = pack((torch.rand(images, 1, size[0] * size[1], channels) < 0.1).float())
    spikes = PackedSpikes(words, size, channels, pool, None, None)
    grad = (torch.randn(images, 1, out_size[0] * out_size[1], outputs) * 64).round() / 64
    gathered = cpu.EventConvGrad((outputs, channels, 3, 2), (2, 1))
    gathered.weight_grad(spikes, grad, out_size)
    found = gathered.finish(1 / pool**2)
    values, grads = (x.flatten(0, 1).transpose(1, 2) for x in (cpu.pooled(spikes, torch.float32), grad))
    shape = (outputs, channels, 3, 2)
    wanted = conv2d_weight(values.unflatten(2, pooled), shape, grads.unflatten(2, out_size), padding=(2, 1))  # type: ignore[arg-type]
    assert found is not None
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("channels", "outputs"), [(3, 1), (33, 70), (64, 300)])
@pytest.mark.parametrize("silent", ["nothing", "some", "all"])
@pytest.mark.parametrize("size", [(1, 1), (8, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_linear_layers_gradient_spike_by_spike_is_the_dense_one(
    channels: int, outputs: int, silent: str, size: tuple[int, int], masked: bool
) -> None:
    """Gradients that are multiples of 1/64 make every sum exact; in two parts, first written, then added."""
    torch.manual_seed(0)
    steps, batch, pool = 2, 3, 2 if size[0] > 1 else 1
    parts, dense = [], []
    for _ in range(2):
        words = pack((torch.rand(steps, batch, size[0] * size[1], channels) < 0.3).float())
        scale = torch.randint(0, 2, (batch, size[0] * size[1], channels)).float() if masked else None
        spikes = PackedSpikes(words, size, channels, pool, scale, pack(scale) if scale is not None else None)
        grad = (torch.randn(steps * batch, outputs) * 64).round() / 64
        if silent != "nothing":
            grad[1], grad[:, ::3] = 0, 0
        parts.append((spikes, grad * 0 if silent == "all" else grad))
        dense.append(cpu.pooled(spikes, torch.float32).transpose(2, 3).flatten(0, 1).flatten(1))
    found = torch.full((outputs, dense[0].shape[1]), torch.nan)
    cpu.event_linear_weight_grad(parts, 1 / pool**2, found, adds=False)
    wanted = torch.stack([grad.T @ values for (_, grad), values in zip(parts, dense)]).sum(0)
    assert torch.equal(found, wanted)
    cpu.event_linear_weight_grad(parts[:1], 1 / pool**2, found, adds=True)
    assert torch.equal(found, wanted + parts[0][1].T @ dense[0])


def test_what_is_not_contiguous_is_refused() -> None:
    """The vectors' addresses are counted as in a contiguous array."""
    v, words = torch.zeros(2, 3, 8), torch.empty(1, 2, 3, 1, dtype=torch.int32)
    with pytest.raises(TypingError, match="contiguous"):
        cpu.scan(
            torch.zeros(1, 2, 3, 16)[..., ::2],
            v,
            ScanParameters(torch.ones(1, 8), torch.ones(1, 8), False),
            words,
            potential=False,
        )
