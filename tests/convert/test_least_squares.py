"""The least-squares fit: the closed form where there is one, smaller errors than without it, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop.convert import LeastSquares, LightCalibration, to_spiking
from spikeprop.convert.calibrator import LayerData
from spikeprop.convert.calibrators.least_squares import WeightFit
from spikeprop.convert.shard import UNSHARDED
from spikeprop.snn import Direct, Layer, SignedIF, Synapse


class Rates:
    """Stands for the spike trains: rates that are given."""

    def __init__(self, rates: dict[str, Tensor]):
        self._rates = rates

    def rates(self, layer: Layer) -> dict[str, Tensor]:
        return self._rates


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped"])
def test_without_neurons_one_step_is_ridge_regression(kind: str) -> None:
    """Against numpy-like regression of the target on the inputs, by ``torch.linalg.lstsq``, with hardly any ridge."""
    draws = torch.Generator().manual_seed(0)
    if kind == "linear":
        op, x = nn.Linear(5, 3), torch.randn(200, 5, generator=draws)
        wanted = nn.Linear(5, 3)(x).detach()
    else:
        groups = 2 if kind == "grouped" else 1
        op, x = nn.Conv2d(4, 6, 3, 2, 1, groups=groups), torch.randn(40, 4, 6, 6, generator=draws)
        wanted = nn.Conv2d(4, 6, 3, 2, 1, groups=groups)(x).detach()
    layer, skipped = (
        Layer([("a", Synapse([op])), ("b", Synapse([nn.Identity()]))], None),
        torch.randn(wanted.shape, generator=draws),
    )
    data = LayerData("output", layer, UNSHARDED, x, wanted + skipped, Rates({"a": x, "b": skipped}))  # type: ignore[arg-type]
    with torch.no_grad():
        fit = WeightFit.of(data, 4)
        assert fit is not None
        fit.run(1, 1e-9)
        torch.testing.assert_close(op(x), wanted, atol=1e-4, rtol=1e-4)


def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.AvgPool2d(2)]
    ann = nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    return ann, torch.rand(48, 2, 6, 6)


@pytest.mark.parametrize("neuron", [SignedIF(), sp.GradedIF(levels=2), sp.IF(v_init=0.5)], ids=str)
def test_the_output_is_nearer_to_the_anns_than_without_the_fit(neuron: sp.IF | sp.GradedIF) -> None:
    ann, x = net()
    errors = []
    with torch.no_grad():
        for calibrator in (LightCalibration(timesteps=2, delay=False), LeastSquares(timesteps=2, delay=False, ridge=0.01)):
            network = sp.convert(ann, x, neuron, calibrator)
            scale = [layer for _, layer in network.named_layers()][-1].scale
            errors.append(float((network(x, 2) / 2 * scale - ann(x)).square().mean()))
    assert errors[1] < 0.85 * errors[0]


def test_a_layer_that_is_exact_already_keeps_its_weights() -> None:
    """Whole currents are sent exactly: the first error is 0, and nothing can be less."""
    torch.manual_seed(2)
    ann = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    x = torch.randint(0, 3, (20, 3)).float()
    network = to_spiking(ann, SignedIF, Direct(), (3,))
    layer = network.layers["0"]
    assert isinstance(layer, Layer)
    before = [p.detach().clone() for p in layer.synapses.parameters()]
    (op,) = layer.synapses[0].weighted()  # type: ignore[operator]
    current = op(x).detach()
    theta = float(current.abs().max())
    assert layer.neuron is not None
    layer.neuron.set_threshold(torch.tensor(theta))  # type: ignore[operator]
    steps = 4
    sent = (torch.floor(current / theta * steps + 0.5).clamp(0, steps) / steps * theta).detach()
    data = LayerData("0", layer, UNSHARDED, current, sent, Rates({"input": x}))  # type: ignore[arg-type]
    with torch.no_grad():
        fit = WeightFit.of(data, steps)
        assert fit is not None
        fit.run(3, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.synapses.parameters()))


def test_a_bad_ridge_is_refused() -> None:
    with pytest.raises(ValueError, match="ridge is 0"):
        LeastSquares(timesteps=2, ridge=0)
