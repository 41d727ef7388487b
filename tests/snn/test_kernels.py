"""The CPU kernels' parts, each against plain torch: Winograd's gradient, products, transposition, scratch memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.grad import conv2d_input

from spikeprop.snn.kernels import cpu, winograd
from spikeprop.snn.kernels.dense import matmul
from spikeprop.snn.scratch import Scratch


@pytest.mark.parametrize(("size", "padding"), [((8, 8), 1), ((7, 9), 1), ((5, 6), 0), ((4, 3), 2), ((1, 2), 1)])
@pytest.mark.parametrize("block", [1, 4 << 20], ids=["image by image", "all at once"])
def test_winograd_is_the_gradient_of_the_input(
    size: tuple[int, int], padding: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "TILES_BYTES", block)
    torch.manual_seed(0)
    images, outputs, channels = 3, 20, 13
    height, width = size[0] + 2 - 2 * padding, size[1] + 2 - 2 * padding
    weight, grad = torch.randn(outputs, channels, 3, 3), torch.randn(images, outputs, *size)
    wanted = conv2d_input((images, channels, height, width), weight.double(), grad.double(), padding=padding)
    out = torch.full((images, height * width, channels), torch.nan)
    flat = grad.permute(0, 2, 3, 1).reshape(images, -1, outputs)
    transformed, scratch = winograd.transformed(weight), Scratch(out.device)
    winograd.input_grad(flat, size, transformed, (padding, padding), out, (height, width), scratch)
    found = out.view(images, height, width, channels).permute(0, 3, 1, 2)
    assert float((found - wanted).norm() / wanted.norm()) < 3e-6


def test_winograd_serves_wide_single_precision_3x3_convolutions_only() -> None:
    wide = torch.empty(128, 128, 3, 3)
    one, two = (1, 1), (2, 2)
    assert winograd.serves(wide, one, two, one)
    assert not winograd.serves(wide, one, (1, 3), one)
    assert not winograd.serves(wide.double(), one, one, one)
    assert not winograd.serves(wide, two, one, one)
    assert not winograd.serves(wide, one, one, two)
    assert not winograd.serves(wide[:64], one, one, one)
    assert not winograd.serves(torch.empty(128, 128, 5, 5), one, one, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products(dtype: torch.dtype) -> None:
    a, b = torch.randn(7, 40, dtype=dtype), torch.randn(40, 19, dtype=dtype)
    tight = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for left, right in ((a, b), (b.T, a.T), (a, b.contiguous().T.contiguous().T)):
        torch.testing.assert_close(matmul(left, right).double(), left.double() @ right.double(), rtol=tight, atol=tight)


def test_outer_axes_change_places() -> None:
    tensor = torch.randn(37, 5, 18)
    assert torch.equal(cpu.outer_transposed(tensor), tensor.permute(2, 1, 0))


def test_scratch_memory_is_used_again_and_never_twice_at_once() -> None:
    scratch = Scratch(torch.device("cpu"))
    first = scratch.take((4, 8), torch.float32)
    second = scratch.take((4, 8), torch.float32)
    assert first.data_ptr() != second.data_ptr()
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())
    place = first.data_ptr()
    scratch.give(first)
    scratch.give(first)  # what is not taken is nobody's: nothing happens
    scratch.give(torch.empty(3))
    smaller = scratch.take((3, 2), torch.float64)
    assert smaller.data_ptr() == place
    assert scratch.take((4, 8), torch.float32).data_ptr() not in (place, second.data_ptr())
