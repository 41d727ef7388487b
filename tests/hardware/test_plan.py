"""The layout of a NIR graph for Lava: matrices against torch, delays of skips, refusals."""

from __future__ import annotations

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError
from spikeprop_hardware.matrix import linear_of
from spikeprop_hardware.plan import make_plan
from torch import nn

from spikeprop import IF, MaxActivation, ResNet, convert
from spikeprop.nir import to_nir
from tests.test_nir import graph_with, lif


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)},
        {"kernel_size": 3, "dilation": 2, "padding": 2, "groups": 2},
        {"kernel_size": 1, "stride": 2},
    ],
    ids=str,
)
def test_convolution_matrices_are_torchs_convolution(settings: dict) -> None:
    conv, x = nn.Conv2d(4, 6, **settings).double(), torch.randn(4, 7, 9, dtype=torch.float64)
    node = nir.Conv2d(
        input_shape=(7, 9), weight=conv.weight.detach().numpy(), bias=conv.bias.detach().numpy(),  # type: ignore[union-attr]
        stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,  # type: ignore[arg-type]
    )  # fmt: skip
    matrix, bias, shape = linear_of(node, (4, 7, 9), "c")
    expected = conv(x.unsqueeze(0))[0].detach()
    assert shape == expected.shape
    np.testing.assert_allclose(matrix @ x.numpy().ravel() + bias, expected.numpy().ravel(), atol=1e-12)


def test_pooling_matrices_are_torchs_pooling() -> None:
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    for kind, factor in ((nir.AvgPool2d, 1.0), (nir.SumPool2d, 6.0)):
        node = kind(kernel_size=np.array([3, 2]), stride=np.array([3, 2]), padding=np.array([0, 0]))
        matrix, _, shape = linear_of(node, (3, 6, 8), "p")
        expected = nn.functional.avg_pool2d(x, (3, 2)) * factor
        assert shape == expected.shape
        np.testing.assert_allclose(matrix @ x.numpy().ravel(), expected.numpy().ravel(), atol=1e-12)


def test_chains_are_folded_and_skips_get_the_missing_delay() -> None:
    torch.manual_seed(0)
    network = convert(ResNet(depth=8, input_shape=(1, 8, 8), classes=3), [torch.rand(8, 1, 8, 8)], IF(), MaxActivation())
    plan = make_plan(to_nir(network))
    assert [p.name for p in plan.populations[:-1]] == list(network.neurons())
    assert [p.depth for p in plan.populations] == list(range(1, 9))
    delays = {p.name: [c.delay for c in p.connections] for p in plan.populations if len(p.connections) > 1}
    assert list(delays.values()) == [[0, 1], [0, 1]]
    head = plan.populations[-1]
    assert len(head.connections) == 1
    assert head.theta is None
    assert head.connections[0].matrix.shape == (3, 128 * 2 * 2)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (nir.Threshold(threshold=np.ones(3)), "'x' is a Threshold, which"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3), metadata={"reset": "bounce"}), "reset mode 'bounce'"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3), v_reset=np.full(3, 0.5)), "v_reset other than 0"),
        (lif(), "without a time step"),
        (nir.Linear(weight=np.eye(5)[:3]), "reads 5 values"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_not_known_is_refused(node: nir.NIRNode, says: str) -> None:
    if isinstance(node, nir.Linear):
        output = nir.Output(output_type={"output": np.array([3])})
        graph = nir.NIRGraph(
            nodes={
                "input": nir.Input(input_type={"input": np.array([3])}),
                "x": node,
                "output": output,
            },
            edges=[("input", "x"), ("x", "output")],
            type_check=False,
        )
    else:
        graph = graph_with(node)
    with pytest.raises(HardwareError, match=says):
        make_plan(graph)
