"""Rules that simulate: BPTT in windows, RTRL, e-prop and OTTT, against one another where they are equal, in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import BPTT, IF, LIF, Direct, GradedIF, Poisson, SignedIF, SpikingNetwork, fit
from spikeprop.errors import SilentNetworkWarning
from spikeprop.learn import (
    OTTT,
    RTRL,
    CrossEntropy,
    EachStep,
    EProp,
    LearningRule,
    LowerRate,
    SpikeCount,
    SquaredError,
    UpperRate,
    VanRossum,
)
from spikeprop.recipe import load_recipe
from spikeprop.runtime.batches import Sequences
from spikeprop.runtime.labels import IGNORED
from spikeprop.snn import ALIF, PLIF, ATan, CubaLIF, FastSigmoid, Layer, Neuron, NeuronState, Synapse, Triangle
from spikeprop.snn.readout import Integrator
from spikeprop.snn.synapse import SampleDropout

T = 7
X = torch.rand(3, T, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 2, 1])
PADDED = Sequences(X, torch.tensor([T, 3, 5]))
Make = Callable[[], Any]


def lif(**settings: Any) -> LIF:
    return LIF(**{"v_threshold": 0.6, "leak": 0.8, "surrogate": Triangle(), **settings})


def network(
    *hidden: int,
    neuron: Make = lif,
    readout: Make = lambda: None,
    read: str = "sum",
    recurrent: bool = False,
) -> SpikingNetwork:
    """Layers of neurons on 4 inputs, and 3 outputs; recurrent: each reads itself, and the first one the last one."""
    torch.manual_seed(1)
    layers, source, size = {}, "input", 4
    for number, count in enumerate(hidden):
        back = [(f"h{number}", Synapse([nn.Linear(count, count)]))] if recurrent else []
        if back and number == 0 and len(hidden) > 1:
            back.append((f"h{len(hidden) - 1}", Synapse([nn.Linear(hidden[-1], count, bias=False)])))
        layers[f"h{number}"] = Layer([(source, Synapse([nn.Linear(size, count)]))], neuron(), feedback=back)
        source, size = f"h{number}", count
    layers["out"] = Layer([(source, Synapse([nn.Linear(size, 3)]))], readout())
    made = SpikingNetwork(layers, Direct(), (4,)).double()
    made.read = read  # type: ignore[assignment]
    return made


def synapse(network: SpikingNetwork, layer: str, number: int = 0) -> Any:
    return network._layer(layer).synapses[number]


def gradient(rule: LearningRule, network: SpikingNetwork, x: Any = X, y: Tensor = Y) -> Tensor:
    """All gradients that the rule leaves; everything random starts from the same seed."""
    network = copy.deepcopy(network)
    torch.manual_seed(5)
    rule.prepare(network, x)
    result = rule.step(network, x, y)
    assert torch.isfinite(result["loss"])
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()])


def assert_same(one: LearningRule, other: LearningRule, network: SpikingNetwork, x: Any = X, y: Tensor = Y) -> None:
    expected = gradient(one, network, x, y)
    assert float(expected.norm()) > 1e-3
    torch.testing.assert_close(gradient(other, network, x, y), expected, rtol=0, atol=1e-10)


NEURONS: dict[str, Make] = {
    "IF": lambda: IF(v_threshold=0.6, surrogate=FastSigmoid(slope=2.0)),
    "LIF": lif,
    "STDB": lambda: LIF(v_threshold=0.6, leak=0.8),
    "to zero": lambda: lif(reset="zero", surrogate=ATan()),
    "ALIF": lambda: ALIF(v_threshold=0.6, leak=0.8, adaptation=0.3, adaptation_leak=0.9, surrogate=Triangle()),
    "CubaLIF": lambda: CubaLIF(v_threshold=0.8, leak=0.8, synaptic_leak=0.5),
    "PLIF": lambda: PLIF(v_threshold=0.4, tau=2.0, surrogate=ATan()),
    "trained": lambda: lif(surrogate=ATan(), v_init=0.5, trainable=("threshold", "leak")),
    "signed": lambda: SignedIF(v_threshold=0.4),
    "graded": lambda: GradedIF(levels=2, v_threshold=0.4, rectify=False),
}


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("recurrent", [False, True])
def test_rtrl_is_bptt(neuron: str, recurrent: bool) -> None:
    assert_same(BPTT(), RTRL(), network(4, 3, neuron=NEURONS[neuron], recurrent=recurrent), PADDED)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("readout", [lambda: None, lambda: Integrator(leak=0.7, trainable=("leak",))], ids=["plain", "leaky"])
def test_eprop_is_bptt_for_one_layer(neuron: str, readout: Make) -> None:
    one = network(5, neuron=NEURONS[neuron], readout=readout)
    assert_same(BPTT(), EProp(each_step=False), one, PADDED)
    assert_same(BPTT(each_step=True), EProp(), one, PADDED)


@pytest.mark.parametrize("read", ["mean", "last", "max"])
def test_rules_take_the_loss_of_what_the_network_reads(read: str) -> None:
    one = network(5, read=read)
    for rule in (RTRL(), EProp(each_step=False), OTTT(each_step=False), BPTT(truncate=T), BPTT(loss=EachStep(), truncate=T)):
        own = BPTT() if rule.loss != EachStep() else BPTT(each_step=True)
        assert_same(own, rule, one, PADDED)


@pytest.mark.parametrize("loss", [SpikeCount(), EachStep(loss=SquaredError(), weight=0.1)])
def test_rules_take_losses_over_time(loss: Any) -> None:
    for rule in (RTRL(loss=loss), EProp(loss=loss, each_step=False), BPTT(loss=loss, truncate=T)):
        assert_same(BPTT(loss=loss), rule, network(5), PADDED)
    target = (torch.rand(3, T, 3, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    assert_same(BPTT(loss=VanRossum()), RTRL(loss=VanRossum()), network(5), PADDED, target)


def test_ottt_is_bptt_for_one_layer_and_for_one_step() -> None:
    assert_same(BPTT(), OTTT(each_step=False), network(5), PADDED)
    assert_same(BPTT(), OTTT(each_step=False), network(5, 4, 6), X[:, :1] * 3)
    deep = gradient(OTTT(each_step=False), network(5, 4)) - gradient(BPTT(), network(5, 4))
    assert float(deep.norm()) > 1e-3  # what it leaves out: the second layer's future


@pytest.mark.parametrize("rule", [EProp(each_step=False), OTTT(each_step=False)], ids=["EProp", "OTTT"])
def test_recurrence_is_learnt_without_the_paths_through_other_neurons(rule: LearningRule) -> None:
    one = network(5, recurrent=True)
    full, own = gradient(BPTT(), one), gradient(rule, one)
    assert 1e-3 < float((full - own).norm()) < float(full.norm())
    with torch.no_grad():
        synapse(one, "h0", 1).ops[0].weight.zero_()  # then no path leads through another neuron, and the gradient is exact
    copied = copy.deepcopy(one)
    assert_same(BPTT(), rule, one)
    rule.step(copied, X, Y)
    assert synapse(copied, "h0", 1).ops[0].weight.grad.any()


def conv_network(encoder: Any, dropout: float = 0.0) -> SpikingNetwork:
    torch.manual_seed(1)
    ops = [nn.Conv2d(1, 3, 3, padding=1), nn.AvgPool2d(2), SampleDropout(dropout)]
    layers = {
        "conv": Layer([("input", Synapse(ops))], lif(v_threshold=0.4)),
        "out": Layer([("conv", Synapse([nn.Flatten(), SampleDropout(dropout), nn.Linear(12, 3)]))], None),
    }
    return SpikingNetwork(layers, encoder, (1, 4, 4)).double()


@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=["Direct", "Poisson"])
def test_two_runs_of_one_simulation_draw_the_same_numbers(encoder: Any) -> None:
    still, conv = torch.rand(3, 1, 4, 4, dtype=torch.float64), conv_network(encoder, dropout=0.4)
    for rule in (OTTT(timesteps=5, each_step=False), EProp(timesteps=5, each_step=False), BPTT(timesteps=5, each_step=False)):
        assert_same(BPTT(timesteps=5), rule, conv, still)
    three = BPTT(timesteps=5, truncate=3)
    expected = gradient(BPTT(timesteps=5), conv, still)
    assert 1e-4 < float((gradient(three, conv, still) - expected).norm()) < float(expected.norm())


def test_truncated_gradient_is_that_of_a_loop_that_detaches() -> None:
    one, k = network(5, 4), 3
    total = one.over_time(X.transpose(0, 1)).detach().sum(0).requires_grad_()
    nn.functional.cross_entropy(total, Y).backward()
    by_value, copied = total.grad, copy.deepcopy(one)
    v = [torch.zeros(3, n, dtype=torch.float64) for n in (5, 4)]
    neuron = copied.neurons()["h0"]
    theta, leak = neuron.v_threshold, neuron.leak
    for t in range(T):
        if t % k == 0:
            v = [part.detach() for part in v]
        z = X[:, t]
        for number, name in enumerate(("h0", "h1")):
            u = leak * v[number] + synapse(copied, name)(z.unsqueeze(0))[0]
            slope = (0.3 * (1 - (u / theta - 1).abs()).clamp(min=0) / theta).detach()
            fired = (u > theta).double()
            z = fired + slope * (u - u.detach())
            v[number] = u - theta * fired
        synapse(copied, "out")(z.unsqueeze(0))[0].backward(by_value, retain_graph=True)
    expected = torch.cat([p.grad.flatten() for p in copied.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient(BPTT(truncate=k), one), expected, rtol=0, atol=1e-10)


def test_truncated_gradient_through_payloads_is_that_of_a_loop_that_detaches() -> None:
    """Payloads by a closed form, and straight-through by torch alone: no step's derivative is written down."""
    one, k, most = network(5, 4, neuron=lambda: GradedIF(levels=2, v_threshold=0.25)), 2, 3
    total = one.over_time(X.transpose(0, 1)).detach().sum(0).requires_grad_()
    nn.functional.cross_entropy(total, Y).backward()
    by_value, copied, q = total.grad, copy.deepcopy(one), 0.125
    v = [torch.full((3, n), q / 2, dtype=torch.float64) for n in (5, 4)]
    sent, cases = [torch.zeros_like(part) for part in v], set()
    for t in range(T):
        if t % k == 0:
            v = [part.detach() for part in v]
        z = X[:, t]
        for number, name in enumerate(("h0", "h1")):
            u = v[number] + synapse(copied, name)(z.unsqueeze(0))[0]
            due = (u / q).ceil().detach() - 1
            up, down = due.clamp(0, most), (-(u / q).floor().detach()).clamp(min=0).minimum(sent[number]).clamp(max=most)
            payload = up - down
            rest = u.detach() - q * payload
            line = torch.where((rest >= 0) & (rest <= q), u / q, payload)  # sends all that is due: straight through
            z = payload + line - line.detach()
            v[number], sent[number] = u - q * z, sent[number] + payload
            cases |= {"below"} if bool((rest < 0).any()) else set()
            cases |= {"above"} if bool((rest > q).any()) else set()
        synapse(copied, "out")(z.unsqueeze(0))[0].backward(by_value, retain_graph=True)
    expected = torch.cat([p.grad.flatten() for p in copied.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient(BPTT(truncate=k), one), expected, rtol=0, atol=1e-10)
    assert float((gradient(BPTT(), one) - expected).norm()) > 1e-3
    assert cases == {"below", "above"}


def test_regularisers_count_in_full_and_in_truncated_bptt() -> None:
    terms = [UpperRate(limit=0.1), LowerRate(limit=0.6, strength=3.0)]
    two = network(5, 4)
    assert_same(BPTT(regularisers=terms), BPTT(regularisers=terms, truncate=T), two, PADDED)
    with_terms, without = gradient(BPTT(regularisers=terms), two, PADDED), gradient(BPTT(), two, PADDED)
    assert float((with_terms - without).norm()) > 1e-3
    windows = gradient(BPTT(regularisers=terms, truncate=2), two, PADDED) - gradient(BPTT(truncate=2), two, PADDED)
    assert float(windows.norm()) > 1e-3
    with pytest.raises(ValueError, match="layer 'h0' has the surrogate STDB"):
        gradient(BPTT(regularisers=terms), network(3, neuron=NEURONS["STDB"]))


class Kept:
    """A tensor that a graph keeps for its backward pass; ``most``: numbers that all graphs kept at one time."""

    now = most = 0

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # an output with its graph would be a circle
        Kept.now += tensor.numel()
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.tensor.numel()


def most_kept(rule: LearningRule, steps: int) -> int:
    Kept.now = Kept.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        gradient(rule, network(5), torch.rand(2, steps, 4, dtype=torch.float64), Y[:2])
    return Kept.most


@pytest.mark.parametrize("rule", [OTTT(), EProp(each_step=False), RTRL(), BPTT(truncate=5)], ids=lambda rule: type(rule).__name__)
def test_graphs_do_not_grow_with_time(rule: LearningRule) -> None:
    assert most_kept(rule, 30) == most_kept(rule, 10) > 0
    assert most_kept(BPTT(each_step=True), 30) > 2 * most_kept(BPTT(each_step=True), 10)


def bursts() -> Neuron:
    class Bursts(Neuron):
        """Two states, and spikes of the whole layer at once: no neuron for itself."""

        def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
            u = state.v + current.cumsum(1)
            return u * 0.1, NeuronState(u, None)

    return Bursts(1.0, 1.0, "subtract", 0.0, Triangle())


def normed(training: bool) -> SpikingNetwork:
    one = network(5)
    norm = nn.BatchNorm1d(5).double()
    assert norm.running_mean is not None
    norm.running_mean += 0.1
    synapse(one, "h0").ops.append(norm)
    return one.train(training)


def test_random_feedback_is_drawn_once_and_saved() -> None:
    one, rule = network(5, 4), EProp(feedback="random")
    with pytest.raises(ValueError, match="drawn in prepare"):
        rule.step(one, X, Y)
    rule.prepare(one, X)
    assert {name: tuple(value.shape) for name, value in rule.state_dict().items()} == {
        "feedback.to_h0": (3, 5),
        "feedback.to_h1": (3, 4),
    }
    assert not list(rule.parameters())
    rule.step(one, X, Y)
    assert all(p.grad is not None and p.grad.any() for p in one.parameters())


@pytest.mark.parametrize(
    ("rule", "made", "said"),
    [
        (EProp(), lambda: network(5, 4), "does not read layer 'h0'.*feedback='random'"),
        (EProp(), lambda: network(5, neuron=bursts), "layer 'h0' a Bursts reads the state or the current of others"),
        (OTTT(), lambda: network(5, neuron=lambda: lif(reset="zero")), "layer 'h0': OTTT traces inputs"),
        (OTTT(), lambda: normed(training=False), "synapse 'h0/0' .* adds a constant that is no bias"),
        (RTRL(), lambda: normed(training=True), "is a batch-norm in training mode"),
        (BPTT(truncate=2), lambda: normed(training=True), "is a batch-norm in training mode"),
        (BPTT(average=True), lambda: network(5, read="mean"), "network.read is 'mean'"),
        (BPTT(regularisers=[UpperRate(limit=0.1)]), network, "has no neurons"),
        (BPTT(regularisers=[LowerRate(limit=0.1)]), lambda: network(5, neuron=SignedIF), "'h0' sends spikes of both signs"),
        (OTTT(), lambda: network(5, neuron=GradedIF), r"layer 'h0': OTTT traces inputs.*GradedIF\(levels=3.*use EProp or BPTT"),
    ],
)
def test_what_a_rule_cannot_do_is_named(rule, made, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rule.step(made(), X, Y)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EProp(feedback="other"), "feedback is 'other'"),  # type: ignore[arg-type]
        (lambda: BPTT(truncate=0), "truncate is 0"),
        (lambda: BPTT(each_step=True, loss=SpikeCount()), "SpikeCount is a loss over all steps"),
        (lambda: BPTT(each_step=True, average=True), "average divides the output"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("rule", [BPTT(), RTRL(), OTTT(), EProp(feedback="random")], ids=lambda rule: type(rule).__name__)
def test_a_network_without_spikes_is_refused(rule: LearningRule) -> None:
    with pytest.raises(ValueError, match=f"{type(rule).__name__} trains a SpikingNetwork, and this is a Linear"):
        rule.step(nn.Linear(4, 3), X, Y)
    if isinstance(rule, EProp):
        with pytest.raises(ValueError, match="EProp trains a SpikingNetwork"):
            rule.prepare(nn.Linear(4, 3), X)


def test_still_samples_need_a_number_of_steps() -> None:
    for rule in (BPTT(), BPTT(each_step=True), RTRL(), EProp(), OTTT()):
        with pytest.raises(ValueError, match="timesteps"):
            rule.step(network(5), X[:, 0], Y)


@pytest.mark.parametrize(
    ("rule", "padded"), [(BPTT(), False), (BPTT(), True), (BPTT(each_step=True), True), (OTTT(), True), (EProp(), True)]
)
def test_fit_trains_on_sequences(rule: LearningRule, padded: bool) -> None:
    """The class is the input that is active at all, in steps of noise."""
    torch.manual_seed(0)
    y = torch.randint(0, 3, (60,))
    x = torch.rand(60, 6, 4) * 0.3
    x[torch.arange(60), :, y] += torch.rand(60, 6)
    lengths = torch.randint(3, 7, (60,))
    batches = [(Sequences(x[i : i + 20], lengths[i : i + 20]) if padded else x[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)]
    one = network(12).float()
    history = fit(one, rule, batches, torch.optim.Adam(one.parameters(), lr=0.02), epochs=12)
    assert history[-1]["accuracy"] > 80


def test_fit_counts_labels_of_each_step() -> None:
    y = torch.randint(0, 3, (3, T), generator=torch.Generator().manual_seed(0))
    y[torch.arange(T) >= PADDED.lengths[:, None]] = IGNORED
    one = network(5).float()
    optimizer = torch.optim.SGD(one.parameters(), lr=0.0)
    rule = BPTT(loss=EachStep(changing=True))
    history = fit(one, rule, [(Sequences(X.float(), PADDED.lengths), y)], optimizer, epochs=1)
    predicted = one.over_time(X.float().transpose(0, 1), lengths=PADDED.lengths).argmax(2).T
    assert history[0]["accuracy"] == pytest.approx(100 * float((predicted == y).sum()) / int(PADDED.lengths.sum()))


def test_silence_on_sequences_is_named() -> None:
    one = network(5, neuron=lambda: LIF(v_threshold=50.0)).float()
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="within 7 steps no neuron of h0 fires"):
        fit(one, BPTT(), [(Sequences(X.float(), PADDED.lengths), Y)], optimizer, epochs=1)


@pytest.mark.parametrize("below", [False, True])
def test_graded_neurons_are_trained_without_spikes_unless_their_sums_are_below_0(below: bool) -> None:
    torch.manual_seed(0)
    one = network(5, 4, neuron=lambda: GradedIF(v_threshold=500.0)).float()
    if below:
        with torch.no_grad():
            synapse(one, "h1").ops[0].bias.fill_(-900.0)
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(one, BPTT(), [(X.float(), Y)], optimizer, epochs=1)
    told = [str(w.message) for w in caught if w.category is SilentNetworkWarning]
    assert [t.partition(" fires")[0] for t in told] == (["within 7 steps no neuron of h0, h1"] if below else [])
    gradient = synapse(one, "h0").ops[0].weight.grad
    assert bool(gradient.any()) is not below


def test_a_recipe_can_name_losses_and_terms() -> None:
    loss, terms = (
        "{use: EachStep, loss: {use: CrossEntropy, label_smoothing: 0.1}, weight: 0.05}",
        "[{use: UpperRate, limit: 0.2}]",
    )
    recipe = load_recipe("digits_cnn_stdb", [f"finetune.rule={{use: BPTT, truncate: 4, loss: {loss}, regularisers: {terms}}}"])
    assert recipe.experiment.finetune.build_rule() == BPTT(
        timesteps=8,
        truncate=4,
        loss=EachStep(loss=CrossEntropy(label_smoothing=0.1), weight=0.05),
        regularisers=[UpperRate(limit=0.2)],
    )
    assert load_recipe("digits_cnn_stdb", ["finetune.rule=OTTT"]).experiment.finetune.build_rule() == OTTT(timesteps=8)
