"""The layout of a NIR graph for Lava: matrices against torch, delays of skips, refusals."""

from __future__ import annotations

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import NirError
from spikeprop_hardware.matrix import linear_of
from spikeprop_hardware.network import lay_out
from torch import nn

from spikeprop import IF, MaxActivation, ResNet, convert
from spikeprop.deploy import to_nir
from tests.deploy.test_nir import graph_with, lif


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)},
        {"kernel_size": 3, "dilation": 2, "padding": 2, "groups": 2},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "dilation": 2, "padding": "same"},
        {"kernel_size": (2, 4), "padding": "same"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
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
    laid_out = lay_out(to_nir(network))
    assert [p.name for p in laid_out.populations[:-1]] == list(network.neurons())
    assert [p.depth for p in laid_out.populations] == list(range(1, 9))
    delays = {p.name: [c.delay for c in p.connections] for p in laid_out.populations if len(p.connections) > 1}
    assert list(delays.values()) == [[0, 1], [0, 1]]
    head = laid_out.populations[-1]
    assert len(head.connections) == 1
    assert head.theta is None
    assert head.connections[0].matrix.shape == (3, 128 * 2 * 2)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (nir.Threshold(threshold=np.ones(3)), "'x' is a Threshold, which"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3), metadata={"reset": "bounce"}), "reset mode 'bounce'"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3), v_reset=np.full(3, 0.5)), "v_reset = 0.5; only"),
        (lif(), "without a time step"),
        (nir.Linear(weight=np.eye(5)[:3]), "reads 5 values"),
        (nir.Flatten(input_type={"input": np.array([3])}, start_dim=1), "'x' flattens axes 1 to -1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_not_known_is_refused(node: nir.NIRNode, says: str) -> None:
    if isinstance(node, nir.Linear | nir.Flatten):
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
    with pytest.raises(NirError, match=says):
        lay_out(graph)


def unit(*, metadata: dict | None = None) -> nir.IF:
    return nir.IF(r=np.ones(3), v_threshold=np.ones(3), metadata=metadata or {})


def test_a_linear_node_that_reads_a_sum_adds_its_bias_once() -> None:
    given, taken = nir.Input(input_type={"input": np.array([3])}), nir.Output(output_type={"output": np.array([3])})
    nodes = {"x": given, "a": unit(), "b": unit(), "sum": nir.Affine(np.eye(3) * 2, np.full(3, 0.25)), "c": unit(), "y": taken}
    edges = [("x", "a"), ("x", "b"), ("a", "sum"), ("b", "sum"), ("sum", "c"), ("c", "y")]
    network = lay_out(nir.NIRGraph(nodes=nodes, edges=edges))
    c = network.populations[2]
    np.testing.assert_array_equal(c.bias, np.full(3, 0.25))
    assert [(connection.source, connection.matrix.sum()) for connection in c.connections] == [("a", 6), ("b", 6)]


def test_a_sum_of_different_shapes_is_refused() -> None:
    nodes = {
        "x": nir.Input(input_type={"input": np.array([3])}),
        "a": nir.Linear(weight=np.ones((1, 3))),
        "b": nir.Linear(weight=np.ones((3, 3))),
        "c": unit(),
        "y": nir.Output(output_type={"output": np.array([3])}),
    }
    edges = [("x", "a"), ("x", "b"), ("a", "c"), ("b", "c"), ("c", "y")]
    with pytest.raises(NirError, match="node 'c' reads a sum of tensors of different shapes"):
        lay_out(nir.NIRGraph(nodes=nodes, edges=edges, type_check=False))


def test_flatten_keeps_the_axes_that_it_is_not_given() -> None:
    for start, end, shape in ((0, -1, (24,)), (1, -1, (2, 12)), (0, 1, (6, 4)), (-2, 2, (2, 12))):
        node = nir.Flatten(input_type={"input": None}, start_dim=start, end_dim=end)  # type: ignore[dict-item]
        assert linear_of(node, (2, 3, 4), "f")[2] == shape


def test_a_strided_convolution_with_padding_same_is_refused() -> None:
    conv = nir.Conv2d(
        input_shape=(6, 6), weight=np.ones((1, 1, 3, 3)), stride=2, padding="same", dilation=1, groups=1, bias=np.zeros(1)
    )
    with pytest.raises(NirError, match="'c' has padding 'same' with stride"):
        linear_of(conv, (1, 6, 6), "c")
