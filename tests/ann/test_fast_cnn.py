"""``FastCNN``: what it starts as, that both poolings convert, and that its two orders of batch-norm and pooling are one."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from spikeprop import IF, Direct
from spikeprop.ann import FastCNN
from spikeprop.ann.activation import QCFS
from spikeprop.convert import to_spiking

SHAPE = (3, 12, 12)


def trained(pool: Literal["avg", "max"], **options) -> FastCNN:
    """A small one whose batch-norm has statistics."""
    torch.manual_seed(0)
    model = FastCNN(input_shape=SHAPE, widths=[6, 8], pool=pool, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.bias.data.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def test_it_starts_as_the_identity_with_gains_of_one() -> None:
    model = FastCNN()
    assert sum(p.numel() for p in model.parameters()) == 1_972_792
    block = model.blocks[1]
    x = torch.rand(2, 64, 8, 8)
    assert torch.equal(block.conv1(x)[:, :64], x)  # type: ignore[operator, union-attr]
    gains = [module.weight for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool((gain == 1).all()) and not gain.requires_grad for gain in gains)


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("activation", [None, QCFS(levels=4, ceiling=2.0)], ids=["relu", "qcfs"])
def test_it_converts_and_the_scale_is_in_the_weights_of_the_head(pool: Literal["avg", "max"], activation: QCFS | None) -> None:
    model = trained(pool, activation=activation, score_scale=0.25)
    images = torch.randn(4, *SHAPE)
    network = to_spiking(model, IF, Direct(), SHAPE, images=images)  # compares the traced network with the module
    (head,) = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert torch.allclose(head.weight, model.head.weight * 0.25)


def test_max_pooling_before_batch_norm_equals_the_order_that_converts() -> None:
    model, x = trained("max"), torch.randn(4, *SHAPE)
    expected = model(x)
    for block in model.blocks:
        block.training = True  # and its batch-norm in evaluation mode
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="too small for 3 poolings"):
        FastCNN(input_shape=(1, 8, 8))
    assert FastCNN(input_shape=(1, 9, 9)).eval()(torch.rand(1, 1, 9, 9)).shape == (1, 10)
    with pytest.raises(ValueError, match="at least one block"):
        FastCNN(widths=[])
