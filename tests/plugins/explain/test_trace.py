"""A traced step: gradients equal those of the network, the data replay them, and every number on an edge is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikeprop as sp
from spikeprop import LIF, TemporalBatchNorm
from spikeprop import spiking as built
from spikeprop.errors import ExplainError
from spikeprop.plugins.explain import TrainingStep, page_data, replay, trace_step
from spikeprop.plugins.explain.forms import FORMS
from spikeprop.plugins.explain.kinds import kind_of
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import STDB, ATan, FastSigmoid, Surrogate, Triangle
from tests.plugins.explain import subjects
from tests.plugins.explain.subjects import (
    ALL,
    EXTRA,
    Residual,
    causal,
    graded,
    mlp,
    plain_gradients,
    residual,
    sequences,
    spiking,
)

SURROGATES = [STDB(alpha=0.3, beta=0.1), Triangle(height=0.5), FastSigmoid(slope=3.0), ATan(alpha=2.0)]

SETTINGS = {"subtract": {}, "zero": {"reset": "zero"}, "trained": {"trainable": ("threshold", "leak")}}


def data_of(subject: TrainingStep, **more: Any) -> dict[str, Any]:
    return page_data(subject, trace_step(subject), **more)


@pytest.mark.parametrize("make", ALL.values(), ids=list(ALL))
def test_replaying_the_data_gives_the_networks_own_gradients(make: Callable[[], TrainingStep]) -> None:
    subject = make()
    page = json.loads(json.dumps(data_of(subject)))
    expected = plain_gradients(subject)
    for forward in (True, False):
        found = replay(page, forward=forward)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 1e-6 or name == "first.bias"  # batch-norm removes the bias
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "settings", [{}, {"reset": "zero"}, {"trainable": ("threshold", "leak")}], ids=["subtract", "zero", "trained"]
)
def test_unrolled_steps_equal_the_reference_kernel(surrogate: Surrogate, settings: dict[str, Any]) -> None:
    subject = spiking(surrogate, 6, **settings)
    expected, found = plain_gradients(subject), replay(data_of(subject))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("make", ALL.values(), ids=list(ALL))
def test_every_edge_has_numbers_and_they_add_up(make: Callable[[], TrainingStep]) -> None:
    subject = make()
    page = data_of(subject)
    checks = page["checks"]
    assert checks["edges"] == checks["edges_with_numbers"] == checks["edges_that_match"] > 0
    assert checks["values"] == checks["values_whose_edges_add_up"]
    assert checks["differences"]["differs"] == 0
    assert checks["differences"]["agrees"] > 0
    assert page["story"]["matches"]
    if not subject.spiking:  # a surrogate's gradient is not the slope of the loss
        assert page["story"]["measured"] == pytest.approx(page["story"]["gradient"], rel=1e-5)
    assert page["program"].keys() >= {"forward", "backward", "gradients"}  # made, and equal to torch


def test_parameters_of_a_list_have_names_of_python_in_the_program() -> None:
    class Listed(nn.Module):
        """With a parameter whose name the program has for values."""

        def __init__(self) -> None:
            super().__init__()
            self.maps, self.h = nn.ParameterList([torch.randn(4, 3)]), nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.maps[0]) @ self.h

    torch.manual_seed(0)
    page = data_of(TrainingStep(name="list", model=Listed(), x=torch.randn(2, 4), y=torch.tensor([0, 1])))
    assert page["program"]["gradients"].keys() == {"p0_1_bar", "h_2_bar"}


def test_ignored_targets_are_no_closed_form_of_the_cross_entropy() -> None:
    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores, y, ignore_index=1)

    for y, unknown in ((torch.tensor([0, 1]), ["cross_entropy"]), (torch.tensor([0, 2]), [])):
        page = data_of(TrainingStep(name="i", model=nn.Linear(4, 3), x=torch.randn(2, 4), y=y, loss=loss))
        assert page["unknown"] == unknown


def test_terms_are_upstream_times_local() -> None:
    subject = mlp()
    step = trace_step(subject)
    page = page_data(subject, step)
    edge = next(e for e in page["edges"] if e["node"] == 0 and page["values"][e["value"]]["name"] == "0.weight")
    one = edge["sums"][0]
    row, column = divmod(one["entry"], 2)
    upstream = step.trace.values[step.trace.nodes[0].outputs[0]].cotangent
    assert upstream is not None
    expected = {4 * n + row: (float(upstream[n, row]), float(subject.x[n, column])) for n in range(4) if subject.x[n, column]}
    assert {t["entry"]: (t["upstream"], t["local"]) for t in one["terms"]} == expected
    assert one["downstream"] == pytest.approx(sum(u * x for u, x in expected.values()), rel=1e-12)


class _Cube(torch.autograd.Function):
    """x^3 with a derivative that is right or wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0].detach() * ctx.factor * x.detach() ** 2, None  # cannot be differentiated again


class _Cubed(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.linear, self.factor = nn.Linear(3, 2), factor

    def forward(self, x: Tensor) -> Tensor:
        return _Cube.apply(self.linear(x), self.factor)  # type: ignore[return-value]


@pytest.mark.parametrize(("factor", "verdict"), [(3.0, "agrees"), (2.0, "differs")])
def test_finite_differences_check_user_functions(factor: float, verdict: str) -> None:
    torch.manual_seed(0)
    page = data_of(TrainingStep(name="cube", model=_Cubed(factor), x=torch.randn(2, 3), y=torch.tensor([0, 1])))
    node = next(n for n in page["nodes"] if n["name"] == "Cube")
    assert node["difference"]["verdict"] == verdict
    assert page["unknown"] == ["Cube"]
    assert page["checks"]["edges_that_match"] == page["checks"]["edges"]
    with pytest.raises(ExplainError, match="no closed form: Cube"):
        replay(page)


def test_a_maximum_of_equal_entries_has_a_kink() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[0].bias.fill_(0.5)  # type: ignore[union-attr, operator]
    page = data_of(TrainingStep(name="tie", model=model, x=torch.ones(1, 1, 2, 2), y=torch.tensor([0])))
    assert page["nodes"][2]["difference"]["verdict"] == "kink"


def test_network_and_torch_are_not_changed() -> None:
    subject = residual()
    before = {name: t.clone() for name, t in subject.model.state_dict().items()}
    apply, random = torch.autograd.Function.__dict__["apply"], torch.get_rng_state()
    step = trace_step(subject)
    page_data(subject, step)
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for model in (subject.model, step.model):
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in subject.model.parameters())


def test_calls_are_labelled_by_module_and_step() -> None:
    page = data_of(spiking())
    fires = [n for n in page["nodes"] if n["kind"] == "fire"]
    assert [n["step"] for n in fires] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({n["module"] for n in fires}) == 2
    modules = {n["module"]: n["name"] for n in data_of(mlp())["nodes"]}
    assert modules == {"0": "linear", "1": "tanh", "2": "linear", "": "binary_cross_entropy_with_logits"}


def test_bytes_saved_for_backward_are_counted_once_in_the_networks_own_precision() -> None:
    saved = [n["saved"] for n in data_of(mlp())["nodes"]]
    # the first layer keeps its input (4x2), tanh its output (4x4), which the second layer needs too; the loss its logits
    assert saved[:3] == [4 * 2 * 4, 4 * 4 * 4, 0]
    assert saved[3] >= 4 * 4


def test_flags() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100.0), model[2].bias.fill_(50.0)  # type: ignore[union-attr, operator]
    page = data_of(TrainingStep(name="ill", model=model, x=torch.rand(3, 2), y=torch.tensor([0, 1, 0])))
    flags = {n["name"] + n["module"]: n["flags"] for n in page["nodes"]}
    assert flags["relu1"] == ["dead", "vanishing"]
    assert "saturated" in flags["tanh3"]
    assert flags["linear4"] == []
    loud = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        loud[1].weight.mul_(1e5)  # type: ignore[operator]
    page = data_of(TrainingStep(name="loud", model=loud, x=torch.rand(1, 2), y=torch.tensor([0]), loss=lambda s, y: s.sum()))
    assert [n["flags"] for n in page["nodes"]] == [["exploding"], [], []]
    silent = spiking()
    for neuron in silent.model.neurons().values():  # type: ignore[operator]
        neuron.set_threshold(neuron.v_threshold * 1e3)
    assert all("silent" in n["flags"] for n in data_of(silent)["nodes"] if n["kind"] == "fire")


def test_large_networks_are_sampled_and_say_so() -> None:
    page = data_of(residual(), limit=10)
    assert not page["complete"]
    assert page["sampled"] == 48
    value = page["values"][page["nodes"][0]["outputs"][0]]
    assert len(value["data"]["some"]) == 48
    assert page["checks"]["edges_that_match"] == page["checks"]["edges"]
    with pytest.raises(ExplainError, match="contains samples"):
        replay(page)


class _ThroughView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        h[:, 0] += x[:, 1]
        return h


class _StaleView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        row = h[0]
        h[:, 0] = x[:, 1]
        return h + row


class _Writes(nn.Module):
    """Writes into a constant, a slice, a mask and one entry, of a value, a number and a value of the tensor itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out = torch.zeros(2, 4, dtype=x.dtype)
        out[:, :3] = h[:, 1:]
        out[:, 3] = h[:, 0] * 2
        out[out < -0.5] = 0.25
        h[0, 3] = 7
        h[1:] = h[:1] * 3
        h[0] = h[1]
        nothing = x[:, 0] > 99
        h[nothing] = h[nothing] * 2
        return self.last(out * h)


def test_writes_into_parts_have_the_gradients_of_torch() -> None:
    torch.manual_seed(0)
    subject = TrainingStep(name="writes", model=_Writes(), x=torch.randn(2, 3), y=torch.tensor([0, 2]))
    page = data_of(subject)
    checks = page["checks"]
    assert checks["edges"] == checks["edges_that_match"] == checks["edges_with_numbers"]
    assert checks["values_whose_edges_add_up"] == checks["values"]
    assert checks["differences"]["agrees"] == len(page["nodes"])
    assert sum(node["name"] == "write" for node in page["nodes"]) == 7
    expected, replayed = plain_gradients(subject), replay(page)
    assert set(replayed) >= set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(replayed[name], gradient, rtol=1e-9, atol=1e-12)


def test_units_of_tokens_are_features_and_of_images_channels() -> None:
    class OfTokens(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).mean(1)

    torch.manual_seed(0)
    features, channels = nn.Linear(3, 4), nn.Conv2d(1, 4, 3)
    for layer in (features, channels):
        layer.bias.data = torch.tensor([-99.0, -99.0, 9.0, 9.0])  # type: ignore[union-attr]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for model, x, axis in (
        (OfTokens(features, nn.ReLU()), torch.randn(2, 5, 3), 2),
        (OfTokens(features, nn.Dropout(1e-9), nn.ReLU()), torch.randn(2, 5, 3), 2),
        (nn.Sequential(channels, nn.ReLU(), *head), torch.randn(2, 1, 5, 5), 1),
    ):
        nodes = data_of(TrainingStep(name="u", model=model, x=x, y=torch.tensor([2, 3])))["nodes"]
        relu = next(node for node in nodes if node["kind"] == "relu")
        assert (relu["settings"]["units"], relu["flags"]) == (axis, ["dead"])


def test_a_pad_with_a_number_is_not_taken_for_a_rearrangement() -> None:
    """Applied to the numbers of entries, a pad with 2 gives the number of an entry."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ConstantPad1d(1, 2.0))
    page = data_of(TrainingStep(name="pad", model=model, x=torch.randn(2, 3), y=torch.tensor([0, 4])))
    assert [node["kind"] for node in page["nodes"]] == ["affine", "opaque", "cross_entropy"]


def test_a_pad_beside_an_entry_of_the_same_value_is_no_rearrangement() -> None:
    class OfOnes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = x * 2
            return F.pad(h / h.detach()[0, 0], (0, 1), value=1.0)  # the entry with number 1 is 1

    page = data_of(TrainingStep(name="pad", model=OfOnes(), x=torch.randn(2, 3), y=torch.tensor([0, 3])))
    assert next(node["kind"] for node in page["nodes"] if node["name"] == "pad") == "opaque"


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        h[:, [0, 0]] = x[:, 1:]
        return h


class _IntoView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = (x * 2).T
        h[0] = x[:, 1]
        return h.T


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (_Twice(), F.cross_entropy, "names an entry several times"),
        (_IntoView(), F.cross_entropy, r"h\.clone\(\)"),
        (_ThroughView(), F.cross_entropy, "writes through a view"),
        (_StaleView(), F.cross_entropy, "changed in place through a view"),
        (nn.Identity(), lambda s, y: s, "must be one number"),
        (nn.Flatten(), lambda s, y: s.detach().sum(), "nothing has a gradient"),
        (nn.Sequential(nn.Linear(3, 2)), lambda s, y: s.sum() * torch.inf, "the loss is"),
    ],
)
def test_unsupported_steps_are_refused(model: nn.Module, loss: Any, message: str) -> None:
    with pytest.raises(ExplainError, match=message):
        trace_step(TrainingStep(name="bad", model=model, x=torch.ones(2, 3), y=torch.tensor([0, 1]), loss=loss))


def test_a_spiking_network_needs_a_number_of_steps() -> None:
    with pytest.raises(ExplainError, match="--timesteps"):
        TrainingStep(name="s", model=spiking().model, x=torch.ones(1, 6), y=torch.tensor([0]))


class _Everything(nn.Module):
    """Operations that the four networks above do not use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, r = torch.linalg.qr(self.weight * 1.5 - 0.25)
        h = torch.cat([x @ q, 1 - x[:, :2].sigmoid() / (2 + x[:, 2:].tanh() ** 1)], 1).unsqueeze(1)
        h = torch.stack([h.squeeze(1), -h.squeeze(1)], 2).softmax(-1).sum(2, keepdim=True).expand(-1, -1, 2)
        a, b = torch.chunk(h, 2, dim=2)
        return F.gelu((a * b).flatten(1)) + (r.sum() - r.mean()) * h.mean((1, 2)).view(-1, 1)


def test_further_operations_have_closed_forms() -> None:
    torch.manual_seed(0)
    subject = TrainingStep(name="all", model=_Everything(), x=torch.randn(2, 4), y=torch.tensor([0, 1]))
    page = data_of(subject)
    assert page["unknown"] == ["pow"]
    step = trace_step(subject)
    for node in step.trace.nodes:
        kind, settings = kind_of(node, step.trace)
        if kind != "opaque":
            inputs = [step.trace.values[i].tensor for i in node.inputs]
            outputs = [step.trace.values[o].tensor for o in node.outputs]
            for mine, theirs in zip(FORMS[kind].forward(inputs, settings), outputs):
                torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)
            upstream = [torch.randn_like(o) for o in outputs]
            leaves = [t.clone().requires_grad_(step.trace.values[i].needs_grad) for i, t in zip(node.inputs, inputs)]
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            true = iter(torch.autograd.grad(node.run(leaves), wanted, upstream))
            for leaf, share in zip(leaves, FORMS[kind].backward(upstream, inputs, outputs, settings)):
                if leaf.requires_grad:
                    torch.testing.assert_close(share, next(true), rtol=1e-10, atol=1e-12, msg=kind)


@pytest.mark.parametrize("make", EXTRA.values(), ids=list(EXTRA))
def test_further_networks_are_replayed(make: Callable[[], TrainingStep]) -> None:
    subject = make()
    page, expected = data_of(subject), plain_gradients(subject)
    assert page["unknown"] == []
    found = replay(page)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "settings", [{}, {"levels": 1, "timesteps": 6}, {"rectify": False, "levels": 1}], ids=["graded", "signed", "both"]
)
def test_gradients_through_payloads_are_those_of_the_network(settings: dict[str, Any]) -> None:
    subject = graded(**settings)
    step, expected = trace_step(subject), plain_gradients(subject)
    page = page_data(subject, step)
    carried = False  # to a step that sends all that is due, by one that does not
    for node in (n for n in step.trace.nodes if n.name == "grade"):
        u, _, q = (step.trace.values[i].tensor for i in node.inputs)
        rest = u - q * step.trace.values[node.outputs[0]].tensor
        (kept,) = (n for n in step.trace.nodes if n.name == "sub" and n.inputs[0] == node.inputs[0])
        passed = step.trace.values[kept.outputs[0]].cotangent
        carried |= passed is not None and bool(passed[(rest < 0) | (rest > q)].any())
    assert carried
    for forward in (True, False):
        found = replay(page, forward=forward)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 1e-3
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    checks = page["checks"]
    assert checks["edges"] == checks["edges_with_numbers"] == checks["edges_that_match"]
    assert checks["values"] == checks["values_whose_edges_add_up"]
    assert checks["differences"]["differs"] == 0
    assert {n["difference"]["verdict"] for n in page["nodes"] if n["kind"] == "grade"} == {"surrogate"}


def test_operations_of_todays_models_and_neurons_have_cards() -> None:
    modern = data_of(EXTRA["modern"]())
    cards, checks = modern["cards"], modern["checks"]
    assert checks["edges_that_match"] == checks["edges_with_numbers"]
    assert checks["values_whose_edges_add_up"] == checks["values"]  # also of the LSTM's cell, of which its output is made
    wanted = {"silu", "group_norm", "interpolate", "einsum", "where", "embedding", "attention_dropout", "lstm_cell", "gru_cell"}
    assert wanted <= cards.keys()
    page = data_of(EXTRA["graded"]())
    assert "graded_if" in page["cards"]
    payloads = [v for n in page["nodes"] if n["kind"] == "grade" for v in page["values"][n["outputs"][0]]["data"]["all"]]
    assert max(payloads) > 1
    adaptive = data_of(sequences(neuron=sp.ALIF(leak=0.9, v_threshold=0.2)))
    assert "alif" in adaptive["cards"]
    assert adaptive["unknown"] == []


class _Unusual(nn.Module):
    """Calls whose meaning depends on more than their name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.embedding(torch.tensor([3, 1]), self.table, padding_idx=-1)  # the last row gets no gradient
        h = torch.einsum("bi,ij", x, torch.einsum("bi,bj->ij", rows, self.mix))  # the second one repeats an operand
        return h.where(h > 0, h * 0.1) + torch.where(h > 1, 1.0, h)


def test_unusual_calls_are_recognised_or_named() -> None:
    torch.manual_seed(0)
    subject = TrainingStep(name="unusual", model=_Unusual(), x=torch.randn(2, 3), y=torch.tensor([0, 2]))
    step = trace_step(subject)
    kinds = [kind_of(node, step.trace) for node in step.trace.nodes]
    assert [kind for kind, _ in kinds].count("where") == 2
    assert [settings["out"] for kind, settings in kinds if kind == "einsum"] == ["bj"]
    assert data_of(subject)["unknown"] == ["einsum"]
    assert next(settings["padding"] for kind, settings in kinds if kind == "embedding") == 3


KINDS: list[dict[str, Any]] = [
    {}, {"read": "mean"}, {"read": "last", "leaky": True}, {"unequal": True, "leaky": True},
    {"unequal": True, "read": "mean"}, {"unequal": True, "read": "last"},
]  # fmt: skip


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_sequences_and_feedback_are_shown_step_by_step(settings: dict[str, Any]) -> None:
    subject = sequences(**settings)
    page, expected = data_of(subject), plain_gradients(subject)
    assert (page["timesteps"], page["samples"], page["unknown"]) == (5, 2, [])
    found = replay(page)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    "neuron", [sp.CubaLIF(leak=0.9, v_threshold=0.2), sp.ALIF(leak=0.9, v_threshold=0.2)], ids=["Cuba", "ALIF"]
)
def test_neurons_with_a_second_state_are_shown_on_sequences(neuron: nn.Module) -> None:
    subject = sequences(neuron=neuron, unequal=True)
    expected, step = plain_gradients(subject), trace_step(subject)
    for name, p in step.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_the_mean_of_maps_is_by_each_sequences_own_length() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), LIF(leak=0.9, v_threshold=0.3), nn.Conv2d(2, 3, 1))
    network = built(module, (1, 2, 2), encoder=sp.Frames(), read="mean")  # maps as high as the batch is long
    frames = Sequences(torch.rand(2, 4, 1, 2, 2), torch.tensor([4, 2]))
    subject = TrainingStep(name="maps", model=network, x=frames, y=torch.randint(3, (2, 2, 2)))
    expected, step = plain_gradients(subject), trace_step(subject)
    for name, p in step.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_sequences_that_do_not_fit_are_refused() -> None:
    subject = sequences()
    with pytest.raises(ExplainError, match="have 5 steps, not 4"):
        dataclasses.replace(subject, timesteps=4)
    with pytest.raises(ExplainError, match="give its number of steps"):
        dataclasses.replace(subject, x=torch.rand(2, 3))
    with pytest.raises(ExplainError, match="reads sequences alone"):
        trace_step(dataclasses.replace(subject, x=torch.rand(2, 3), timesteps=4))
    with pytest.raises(ExplainError, match="sum, the mean or the last"):
        trace_step(sequences(read="max"))


def test_a_pooled_spiking_network_is_shown_too() -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    snn = sp.convert(ann, [torch.rand(4, 1, 6, 6)], sp.IF(), sp.MaxActivation())
    subject = TrainingStep(name="pool", model=snn, x=torch.rand(1, 1, 6, 6), y=torch.tensor([1]), timesteps=3)
    step, expected = trace_step(subject), plain_gradients(subject)
    for name, p in step.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_residual_runs_twice_with_the_same_dropout() -> None:
    assert isinstance(residual().model, Residual)
    first, second = (replay(data_of(residual())) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), TemporalBatchNorm(4, 3)])
def test_batch_norm_over_time_is_refused(norm: nn.Module) -> None:
    """Step by step it would have other statistics, or no factors, than in the network."""
    network = built(nn.Sequential(nn.Linear(3, 4), norm, LIF(), nn.Linear(4, 2)), 3)
    step = TrainingStep(name="norm", model=network, x=torch.rand(2, 3), y=torch.tensor([0, 1]), timesteps=3)
    with pytest.raises(ExplainError, match="batch-norm over time"):
        trace_step(step)


class _Several(nn.Module):
    """Two inputs to scores and more, in a dict or a tuple; the scores of the tuple cannot be told from the rest."""

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 2), kind

    def forward(self, a: Tensor, b: Tensor) -> Any:
        scores, hidden = self.linear(a) - self.linear(b), self.linear(a * b)
        return {"hidden": hidden, "logits": scores} if self.kind is dict else (scores, hidden)


def test_several_inputs_named_outputs_and_compiled_modules_are_shown() -> None:
    torch.manual_seed(0)
    model, a, b = _Several(), torch.randn(2, 3), torch.randn(2, 3)
    y = torch.tensor([0, 1])
    loss = F.cross_entropy(model.double()(a.double(), b.double())["logits"], y)
    for x in ((a, b), {"a": a, "b": b}):
        step = trace_step(TrainingStep(name="two", model=torch.compile(model), x=x, y=y))  # type: ignore[arg-type]
        assert step.loss == pytest.approx(float(loss.detach()), rel=1e-12)
        page = page_data(TrainingStep(name="two", model=model, x=x, y=y), step)
        assert page["samples"] == 2
        assert [v["name"] for v in page["values"] if v["role"] == "parameter"] == ["linear.weight", "linear.bias"]
        names = ["input 0", "input 1"] if isinstance(x, tuple) else ["input a", "input b"]
        assert [v["name"] for v in page["values"]][:2] == names
        assert page["checks"]["edges_that_match"] == page["checks"]["edges"]
    subject = TrainingStep(name="pair", model=_Several(tuple), x=(a, b), y=y)
    with pytest.raises(ExplainError, match=r"tuple with the tensors \[0, 1\].*give a loss"):
        trace_step(subject)
    first = dataclasses.replace(subject, loss=lambda scores, y: F.cross_entropy(scores[0], y))
    assert trace_step(first).loss > 0


def test_the_line_of_the_users_module_is_recorded() -> None:
    nodes = data_of(residual())["nodes"]
    file, line, text = next(n["source"] for n in nodes if n["kind"] == "conv2d")
    assert file == "tests/plugins/explain/subjects.py"
    assert text == "skip = F.relu(self.norm(self.first(x)), inplace=True)"
    assert Path(subjects.__file__).read_text().splitlines()[line - 1].strip() == text
    assert data_of(mlp())["nodes"][0]["source"][2] == "return F.linear(input, self.weight, self.bias)"  # no line of the user's


def test_finite_differences_hold_beside_a_large_negative_mask() -> None:
    subject = causal(filled=True)
    subject.model.masked_by = -1e9  # type: ignore[assignment]
    verdicts = {n["name"]: n["difference"]["verdict"] for n in data_of(subject)["nodes"]}
    assert set(verdicts.values()) == {"agrees"}


def test_backward_pass_outside_of_both_sides_of_a_kink_differs() -> None:
    class Bent(torch.autograd.Function):
        """|x| with a slope of 0 (between the sides) or 2 at 0."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
            ctx.slope = slope
            return x.abs()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
            return grads[0] * ctx.slope, None

    class Net(nn.Module):
        def __init__(self, slope: float):
            super().__init__()
            self.scale, self.slope = nn.Parameter(torch.ones(())), slope

        def forward(self, x: Tensor) -> Tensor:
            return Bent.apply(self.scale * x, self.slope)  # type: ignore[return-value]

    for slope, verdict in ((0.5, "kink"), (2.0, "differs")):
        subject = TrainingStep(name="b", model=Net(slope), x=torch.zeros(4), y=torch.ones(4), loss=lambda s, y: (s * y).sum())
        assert data_of(subject)["nodes"][1]["difference"]["verdict"] == verdict


def test_a_made_up_gradient_at_a_jump_is_no_kink() -> None:
    class Jump(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return (x > 0).to(x)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return Jump.apply(self.scale * x)  # type: ignore[return-value]

    page = data_of(TrainingStep(name="j", model=Net(), x=torch.zeros(4), y=torch.ones(4), loss=lambda s, y: (s * y).sum()))
    assert page["nodes"][1]["difference"]["verdict"] == "differs"


def test_zero_gradients_below_a_zero_head_are_not_vanishing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    page = data_of(TrainingStep(name="head", model=model, x=torch.randn(2, 3), y=torch.tensor([0, 1])))
    assert [n["flags"] for n in page["nodes"]] == [["stopped"], ["stopped"], [], []]


def test_complex_numbers_are_named_as_the_reason() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(self.linear(x)).abs()

    with pytest.raises(ExplainError, match=r"fft_fft in the network \(Spectrum\) computes with complex numbers"):
        trace_step(TrainingStep(name="c", model=Spectrum(), x=torch.ones(2, 4), y=torch.tensor([0, 1])))
