"""The diagnosis of a conversion, on networks that are built to lose accuracy for one known reason."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spikeprop as sp
from spikeprop.errors import EvaluationError
from spikeprop.evaluate import ConversionDiagnosis

STEPS = 4


def made(outputs: int = 4) -> tuple[nn.Sequential, Tensor]:
    """Two layers of positive weights and inputs, so that all neurons are active."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()
    with torch.no_grad():
        for layer in ann:
            if isinstance(layer, nn.Linear) and layer.out_features != outputs:
                layer.weight.abs_()
                layer.bias.zero_()
    return ann, torch.rand(64, 6)


def calibrated(ann: nn.Module, x: Tensor, neuron: sp.IF | sp.GradedIF, factor: float = 1.0) -> sp.SpikingNetwork:
    """Thresholds at the largest activation of each layer; of the last layer of neurons times a factor."""
    network = sp.convert(ann, x, neuron, sp.MaxActivation(per="layer"))
    last = list(network.neurons().values())[-1]
    last.set_threshold(last.v_threshold * factor)
    *_, (_, readout) = network.named_layers()
    for _, _, synapse in readout.branches():
        for op in synapse.weighted():
            op.weight.data.mul_(factor)
    return network


@pytest.mark.parametrize(("factor", "cause"), [(0.2, "clipping"), (3.0, "rounding")])
def test_a_threshold_that_is_too_low_clips_and_one_too_high_rounds(factor: float, cause: str) -> None:
    ann, x = made()
    found = sp.explain_conversion(calibrated(ann, x, sp.GradedIF(levels=3), factor), ann, x, [STEPS])
    first, last = found.at(STEPS)
    assert last.cause == cause
    assert getattr(last, cause) > 90
    assert found.worst(STEPS) is last
    assert last.own > 2 * first.own
    assert f"{getattr(last, cause):.0f} % of that is {cause}" in str(found)


def test_negative_input_after_positive_is_uneven_for_a_neuron_that_takes_nothing_back() -> None:
    """The excited neuron fires in both steps, the inhibiting one in the second only; together they call for nothing."""
    first, second = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    ann = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [0.4]]))
        second.weight.copy_(torch.tensor([[0.5, -1.1]]))
    x = torch.ones(8, 1)
    shares = {}
    for neuron in (sp.IF(v_init=0.5), sp.SignedIF()):
        network = sp.convert(ann, x, neuron, sp.MaxActivation(per="layer"))
        shares[type(neuron)] = sp.explain_conversion(network, ann, x, [2]).at(2)[-1]
    assert shares[sp.IF].cause == "unevenness"
    assert shares[sp.IF].unevenness == pytest.approx(100)
    assert shares[sp.SignedIF].own == 0
    assert shares[sp.SignedIF].cause is None


def test_a_channel_whose_threshold_is_far_too_high_is_silent() -> None:
    ann, x = made()
    network = sp.convert(ann, x, sp.SignedIF(), sp.MaxActivation(per="channel"))
    first = next(iter(network.neurons().values()))
    theta = first.v_threshold.clone()
    theta.view(-1)[:3] *= 100
    first.set_threshold(theta)
    row = sp.explain_conversion(network, ann, x, [STEPS]).at(STEPS)[0]
    assert (row.silent, row.channels) == (3, 16)
    assert row.cause == "silence"
    assert row.clipping + row.rounding + row.unevenness + row.silence == pytest.approx(100)


def test_the_number_of_steps_is_that_of_the_calibration(tmp_path: Path) -> None:
    ann, x = made()
    network = sp.convert(ann, x, sp.GradedIF(levels=4), sp.LeastError(timesteps=6))
    assert list(sp.explain_conversion(network, ann, x).agreement) == [6]
    sp.save(network, tmp_path / "net.safetensors")
    assert list(sp.explain_conversion(sp.load(tmp_path / "net.safetensors"), ann, x).agreement) == [6]
    assert list(sp.explain_conversion(sp.convert(ann, x, sp.IF(), sp.MaxActivation()), ann, x).agreement) == [4, 8]


def test_errors_fall_with_steps_and_without_an_error_it_says_so() -> None:
    ann, x = made()
    network = sp.convert(ann, x, sp.GradedIF(levels=4), sp.LeastError(timesteps=STEPS))
    found = sp.explain_conversion(network, ann, x, [STEPS, 64])
    assert all(late.own < early.own for early, late in zip(found.at(STEPS), found.at(64)))
    assert found.agreement[64] >= found.agreement[STEPS]
    assert found.images == 64
    assert [row.layer for row in found.at(STEPS)] == list(network.neurons())
    exact = sp.convert(ann, torch.zeros(1, 6) + x[:1], sp.GradedIF(levels=4), sp.ThresholdIteration(timesteps=1))
    assert "No layer adds" in str(sp.explain_conversion(exact, ann, x[:1], [1]))
    alike = dataclasses.replace(found, agreement={STEPS: 100.0})
    assert "No prediction is lost. The largest error of its own" in str(alike)
    assert "Most is lost" not in str(alike)


def test_own_and_inherited_errors_add_up_for_the_first_layer() -> None:
    """The first layer's input is exact: it inherits nothing but what the calibrator changed."""
    ann, x = made()
    network = calibrated(ann, x, sp.IF(v_init=0.5))
    first, last = sp.explain_conversion(network, ann, x, [STEPS]).at(STEPS)
    assert first.inherited < 1e-6
    assert first.own == pytest.approx(first.total)
    assert last.inherited > 0.001


def test_layers_that_compute_are_rows_too_and_add_nothing() -> None:
    """Functions send their values exactly; the neurons before them, of both signs, round."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.randn(48, 6)
    network = sp.convert(ann, x, timesteps=STEPS)
    rows = sp.explain_conversion(network, ann, x, [STEPS]).at(STEPS)
    computing = {name for name, dynamics in network.dynamics().items() if dynamics.arithmetic}
    assert computing
    assert [row.layer for row in rows] == list(network.dynamics())
    for row in rows:
        assert (row.own < 1e-5) == (row.layer in computing)


def test_what_cannot_be_compared_is_refused() -> None:
    ann, x = made()
    network = sp.convert(ann, x, timesteps=STEPS)
    with pytest.raises(EvaluationError, match="is not a spiking network"):
        sp.explain_conversion(ann, network, x)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="not converted from this ANN"):
        sp.explain_conversion(network, nn.Sequential(*ann[:3]), x)
    with pytest.raises(ValueError, match="at least 1"):
        sp.explain_conversion(network, ann, x, [0])
    with pytest.raises(ValueError, match="no images"):
        sp.explain_conversion(network, ann, [])
    before = sp.convert(ann, x, sp.IF(v_init=0.5), sp.OffsetSpike(calibrator=sp.MaxActivation(), pre_run=2))
    with pytest.raises(EvaluationError, match="runs beforehand"):
        sp.explain_conversion(before, ann, x)
    assert isinstance(sp.explain_conversion(network, ann, (x, torch.zeros(64, dtype=torch.long)), [1]), ConversionDiagnosis)


@pytest.mark.parametrize("calibrator", [sp.LeastError(timesteps=STEPS), sp.LeastSquares(timesteps=STEPS)])
def test_another_ann_of_the_same_shape_is_refused(calibrator: sp.LeastError | sp.LeastSquares) -> None:
    ann, x = made()
    network = sp.convert(ann, x, sp.SignedIF(), calibrator)
    other = copy.deepcopy(ann)
    sp.explain_conversion(network, other, x, [1])
    with torch.no_grad():
        other[2].weight.copy_(torch.randn(12, 16, generator=torch.Generator().manual_seed(1)))  # type: ignore[operator]
    with pytest.raises(EvaluationError, match=r"not converted from this ANN: the currents of layer '.+' differ"):
        sp.explain_conversion(network, other, x, [1])


class TwoHeads(nn.Module):
    """Outputs of which the second is two numbers of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body, _ = made(6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.body(x)
        return {"kind": scores[:, :4], "side": scores[:, 4:]}


def test_one_output_of_several_is_explained_by_its_name() -> None:
    _, x = made()
    ann = TwoHeads().eval()
    network = sp.convert(ann, x, timesteps=STEPS)
    found = sp.explain_conversion(network, ann, x, [STEPS], output="side")
    with torch.no_grad():
        agree = network(x, STEPS)["side"].argmax(1) == ann(x)["side"].argmax(1)
    assert found.agreement[STEPS] == pytest.approx(100 * float(agree.double().mean()))
    for wrong in (None, "left"):
        with pytest.raises(EvaluationError, match=r"2 outputs.*output= one of 'kind', 'side'"):
            sp.explain_conversion(network, ann, x, [STEPS], output=wrong)
