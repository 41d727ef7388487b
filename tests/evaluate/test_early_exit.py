"""Early exit: the same predictions where it is certain, the steps by hand, and the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import CNN, IF, LIF, Digits, Direct, GradedIF, Percentile, Poisson, SignedIF, convert
from spikeprop.convert import LightCalibration, OffsetSpike
from spikeprop.errors import EvaluationError
from spikeprop.evaluate import EarlyExit, Predictor, evaluation_rows, leave_early, snn_accuracy, snn_mean_iou, summarise
from spikeprop.evaluate import predictor as predictors
from spikeprop.evaluate.early_exit import CertainMargin
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import Encoder, Layer, Neuron, SpikingMaxPool, SpikingNetwork, Synapse
from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.leaving import Leaving

CERTAIN = EarlyExit()


def two_classes(neuron: LayerDynamics, head: list[list[float]]) -> SpikingNetwork:
    """Two inputs, a neuron for each, and an output of two classes."""
    hidden, out = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    hidden.weight.data, out.weight.data = torch.eye(2), torch.tensor(head)
    layers = {"hidden": Layer([("input", Synapse([hidden]))], neuron), "out": Layer([("hidden", Synapse([out]))], None)}
    return SpikingNetwork(layers, Direct(), (2,)).eval()


@pytest.mark.parametrize("packed", [True, False])
def test_an_image_leaves_when_the_other_class_cannot_catch_up(packed: bool) -> None:
    """A current of 1.5 fires in every step, 0.1 in none of the first nine. The other class gains at most 2 a step on the best.

    After t of 10 steps the margin is 2 t, and the most that can be lost 2 (10 - t): it is less from t = 6 on. A tie never leaves.
    """
    network = two_classes(IF(), [[1.0, -1.0], [-1.0, 1.0]])
    network.packed = packed
    x = torch.tensor([[1.5, 0.0], [0.1, 1.5], [1.5, 1.5]])
    exits = leave_early(network, x, 10, CERTAIN)
    assert exits.predicted.tolist() == [0, 1, 0]
    assert exits.steps.tolist() == [6, 6, 10]


def test_the_bound_of_signed_neurons_is_twice_as_wide_and_grows_with_the_payload() -> None:
    neurons = (IF(), SignedIF(), GradedIF(levels=3))
    plain, signed, graded = (CertainMargin(two_classes(n, [[1.0, 0.0], [0.0, 1.0]]), 10).gain_CC for n in neurons)
    assert plain.tolist() == [[0, 1], [1, 0]]
    assert signed.tolist() == [[0, 2], [2, 0]]
    assert graded.tolist() == [[0, 14], [14, 0]]


def test_a_bound_for_each_class_holds_where_pairs_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = two_classes(IF(), torch.randn(2, 2).tolist())
    pairs = CertainMargin(network, 8).gain_CC
    monkeypatch.setattr("spikeprop.evaluate.early_exit.PAIRS", 0)
    alone = CertainMargin(network, 8).gain_CC
    assert (alone >= pairs - 1e-12).all()


CASES = {
    "IF": (IF(v_init=0.5), Direct(), LightCalibration(timesteps=12)),
    "a delayed readout": (IF(), Direct(), LightCalibration(timesteps=12, bias=False)),
    "Poisson": (IF(), Poisson(), Percentile(percentile=99.0)),
    "LIF": (LIF(leak=0.99), Direct(), Percentile(percentile=99.0)),
    "SignedIF": (SignedIF(), Direct(), LightCalibration(timesteps=12)),
    "GradedIF": (GradedIF(levels=2), Direct(), LightCalibration(timesteps=12)),
    "a run beforehand": (IF(v_init=0.5), Direct(), OffsetSpike(calibrator=Percentile(percentile=99.0), pre_run=3)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("every", [1, 3])
def test_certain_exits_predict_what_the_complete_simulation_does(digits_cnn: CNN, case: str, every: int) -> None:
    neuron, encoder, calibrator = CASES[case]
    torch.manual_seed(0)
    images = next(iter(Digits().train(256, seed=0).epoch(0)))[0]
    x, y = next(iter(Digits().test(120).epoch(0)))
    network = convert(digits_cnn, [images], neuron, calibrator, encoder=encoder).double()
    found = Predictor(timesteps=(40,), early_exit=EarlyExit(every=every)).predict(network, 0, x.double(), y)
    assert found.early is not None
    predicted, steps = found.early
    assert torch.equal(predicted, found.best[:, 0, 0].long())
    assert steps.max() <= 40
    assert (steps < 40).any()


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=["Direct", "Poisson"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("neuron", [IF(v_init=0.5), GradedIF(levels=3)], ids=["IF", "GradedIF"])
def test_samples_that_go_on_are_simulated_as_before(
    digits_cnn: CNN, packed: bool, encoder: Encoder, threads: int, neuron: Neuron
) -> None:
    x = next(iter(Digits().test(23).epoch(0)))[0].double()
    network = convert(digits_cnn, [x.float()], neuron, Percentile(), encoder=encoder).double()
    network.packed = packed
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(1)
        complete = torch.cat(list(network.unroll(x, 12, chunk=2)))
        torch.manual_seed(1)
        left, leaving = torch.arange(len(x)), Leaving()
        for number, outputs in enumerate(network.unroll(x, 12, chunk=2, leaving=leaving)):
            torch.testing.assert_close(outputs, complete[2 * number : 2 * number + 2, left], rtol=1e-12, atol=1e-12)
            rows = torch.arange(len(left))[torch.arange(len(left)) % (number + 2) != 0]
            left = left[rows]
            leaving.keep(rows)
    finally:
        torch.set_num_threads(usual)


class Taps(LayerDynamics):
    """Fires above a threshold that goes round a table; its state has a constant as long as the batch, and samples second."""

    def initial_state(self, current: Tensor) -> Any:
        return (torch.stack([torch.zeros_like(current)] * 2), torch.tensor([0.2, 0.9, 0.4, 0.6]), None)

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        (last, before), table, _ = state
        u = current + last + 0.5 * before
        spikes = (u > table[0]).to(current)
        return spikes, (torch.stack([u - spikes, last]), table.roll(1), None)


class Growing(LayerDynamics):
    """Keeps all of its currents side by side: samples are no axis of their own."""

    def initial_state(self, current: Tensor) -> Any:
        return (current.flatten(),)

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        return (current > 0.5).to(current), (state[0] + current.flatten(),)


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_a_constant_as_long_as_the_batch_stays_complete(packed: bool) -> None:
    torch.manual_seed(0)
    network, x = two_classes(Taps(), [[1.0, -1.0], [-1.0, 1.0]]), torch.rand(4, 2)
    network.packed = packed
    complete, leaving = torch.cat(list(network.unroll(x, 9, chunk=1))), Leaving()
    rows, draws = torch.tensor([1, 3]), torch.random.get_rng_state()
    for number, outputs in enumerate(network.unroll(x, 9, chunk=1, leaving=leaving)):
        assert torch.equal(outputs[0], complete[number] if number < 3 else complete[number, rows])
        if number == 2:
            leaving.keep(rows)
    assert torch.equal(torch.random.get_rng_state(), draws)


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_samples_that_have_no_axis_cannot_leave(packed: bool) -> None:
    network, leaving = two_classes(Growing(), [[1.0, -1.0], [-1.0, 1.0]]), Leaving()
    network.packed = packed
    running = network.unroll(torch.rand(4, 2), 9, chunk=1, leaving=leaving)
    next(running)
    leaving.keep(torch.tensor([1, 3]))
    with pytest.raises(ValueError, match="layer 'hidden': the state of Growing does not hold samples along one axis"):
        next(running)


def test_confident_exits_save_steps_and_the_report_says_what_they_cost(digits_cnn: CNN) -> None:
    x, y = next(iter(Digits().test(200).epoch(0)))
    network = convert(digits_cnn, [x], IF(v_init=0.5), LightCalibration(timesteps=32))
    predictor = Predictor(timesteps=(8, 32), early_exit=EarlyExit(confidence=0.95))
    batches = [predictor.predict(network, n, x[at], y[at]) for n, at in enumerate((slice(0, 90), slice(90, 200)))]
    values = summarise(network, predictor, predictors.unpack(predictors.pack(batches)))
    found = values["early_exit"]
    assert found["mean_timesteps"] < 20
    assert found["steps_saved"] == 200 * 32 - round(200 * found["mean_timesteps"])
    assert found["top1_without"] == values["accuracy"]["32"]["top1"]
    out_TBC = torch.cat(list(network.unroll(x, 32, chunk=1))) * list(network.named_layers())[-1][1].scale
    sure_TB = (out_TBC / torch.arange(1, 33).view(-1, 1, 1)).softmax(2).amax(2) >= 0.95
    sure_TB[-1] = True
    leaves_B = sure_TB.int().argmax(0)
    assert found["top1"] == pytest.approx(100 * float((out_TBC[leaves_B, torch.arange(200)].argmax(1) == y).float().mean()))
    assert found["mean_timesteps"] == pytest.approx(float(leaves_B.float().mean()) + 1)
    assert f"mean T {found['mean_timesteps']:.2f}" in dict(evaluation_rows(values))["early exit, confidence 0.95, T <= 32"]


@pytest.mark.parametrize("rule", [CERTAIN, EarlyExit(confidence=0.95)], ids=["certain", "confident"])
def test_one_logit_is_compared_with_zero(rule: EarlyExit) -> None:
    """Class 1 above a logit of 0, as ``predicted`` has it. A margin of t spikes is certain once 10 - t steps gain less."""
    hidden, out = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    hidden.weight.data, out.weight.data = torch.eye(2), torch.tensor([[1.0, -1.0]])
    layers = {"hidden": Layer([("input", Synapse([hidden]))], IF()), "out": Layer([("hidden", Synapse([out]))], None)}
    network, x = SpikingNetwork(layers, Direct(), (2,)).eval(), torch.tensor([[1.5, 0.0], [0.0, 1.5], [1.5, 1.5]])
    exits = leave_early(network, x, 10, rule)
    assert exits.predicted.tolist() == [1, 0, 0]
    assert exits.steps.tolist() == ([6, 6, 10] if rule is CERTAIN else [10, 10, 10])  # a mean logit of 1 is 73 %


def test_confidence_is_that_of_the_steps_that_count() -> None:
    """After a run beforehand the output starts anew: the mean is over the steps since, and sure at the first of them."""
    network = two_classes(IF(), [[1.0, -1.0], [-1.0, 1.0]])
    network.readout.set(pre_run=4)
    exits = leave_early(network, torch.tensor([[1.5, 0.0]]), 10, EarlyExit(confidence=0.85))
    assert exits.steps.tolist() == [5]


def test_a_readout_without_a_known_bound_is_refused_by_name() -> None:
    out = nn.Linear(3, 2)
    network = SpikingNetwork({"out": Layer([("input", Synapse([out]))], None)}, Direct(), (3,)).eval()
    with pytest.raises(EvaluationError, match=r"'out' reads the input.*give early exit a confidence"):
        leave_early(network, torch.rand(2, 3), 4, CERTAIN)
    layers = {
        "fire": Layer([("input", Synapse([nn.Conv2d(1, 2, 1)]))], IF()),
        "pool": Layer([("fire", Synapse([]))], SpikingMaxPool(kernel_size=2)),
        "out": Layer([("pool", Synapse([nn.Flatten(), nn.Linear(8, 2)]))], None),
    }
    pooled = SpikingNetwork(layers, Direct(), (1, 4, 4)).eval()
    with pytest.raises(EvaluationError, match=r"reads layer 'pool' .SpikingMaxPool."):
        leave_early(pooled, torch.rand(2, 1, 4, 4), 4, CERTAIN)
    assert leave_early(pooled, torch.rand(2, 1, 4, 4), 4, EarlyExit(confidence=0.9)).steps.max() <= 4


@pytest.mark.parametrize("packed", [True, False])
def test_training_mode_is_refused(packed: bool) -> None:
    """Dropout masks belong to the samples that the simulation began with."""
    network = two_classes(IF(), [[1.0, -1.0], [-1.0, 1.0]]).train()
    network.packed = packed
    with pytest.raises(ValueError, match=r"call network\.eval\(\) first"):
        leave_early(network, torch.rand(3, 2), 4, EarlyExit(confidence=0.9))


@pytest.mark.parametrize("bad", [{"confidence": 0.0}, {"confidence": 1.0}, {"every": 0}, {"every": 1.5}, {"every": True}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"confidence is|every is"):
        EarlyExit(**bad)  # type: ignore[arg-type]


def test_a_sequence_leaves_after_its_own_last_step() -> None:
    """However long the others of its batch are; and no later than the number of steps that is asked for."""
    network = two_classes(IF(), [[1.0, -1.0], [-1.0, 1.0]])
    x = Sequences.of([torch.tensor([[0.6, 0.5]]).expand(length, 2) for length in (3, 9, 1)])
    never, labels = EarlyExit(confidence=1 - 1e-9), torch.tensor([0, 0, 0])
    assert leave_early(network, x, None, never).steps.tolist() == [3, 9, 1]
    assert leave_early(network, x, None, CERTAIN).steps.tolist() == [3, 9, 1]
    shown = Predictor(early_exit=never).predict(network, 0, x, labels)
    assert shown.early is not None
    assert torch.equal(shown.early[0], shown.best[:, 0, 0].long())
    shown = Predictor(timesteps=(4,), early_exit=never).predict(network, 0, x, labels)
    assert shown.early is not None
    assert shown.early[1].tolist() == [3, 4, 1]
    with pytest.raises(EvaluationError, match="still samples need a number of steps"):
        leave_early(network, torch.rand(2, 2), None, never)


@pytest.mark.parametrize("measure", [snn_accuracy, snn_mean_iou])
def test_steps_that_no_sequence_has_are_refused(measure: Any) -> None:
    """However the sequences are divided into batches."""
    network = two_classes(IF(), [[1.0, -1.0], [-1.0, 1.0]])
    x = Sequences.of([torch.tensor([[0.6, 0.5]]).expand(length, 2) for length in (3, 9, 1)])
    labels = torch.tensor([0, 0, 0])
    for batches in ([(x, labels)], [(x[:1], labels[:1]), (x[1:], labels[1:])]):
        assert list(measure(network, batches, [4, 9])) == [4, 9]
        with pytest.raises(EvaluationError, match="the sequences have 9 steps, so there is no prediction after 10"):
            measure(network, batches, [4, 10])
