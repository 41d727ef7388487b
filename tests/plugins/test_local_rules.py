"""The family of local rules: each against backprop in its exact limit or a closed form, one contract for all, and refusals."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop.ann import CNN, CIFARResNet
from spikeprop.errors import LabelError, SegmentError, TrainingCollapsed
from spikeprop.learn import CrossEntropy, LearningRule, Loss, SquaredError, fit, with_rates
from spikeprop.plugins import (
    ActivationRelaxation,
    DirectFeedbackAlignment,
    EquilibriumPropagation,
    FeedbackAlignment,
    ForwardForward,
    PredictiveCoding,
    ReadoutOnly,
    TargetPropagation,
)
from spikeprop.plugins.local_rules.base import SegmentRule
from tests.learn.test_fit import uninterrupted_and_resumed, weights
from tests.learn.test_segments import Branchy

RULES: dict[str, SegmentRule] = {
    "predictive coding": PredictiveCoding(),
    "predictive coding, predictions follow": PredictiveCoding(fixed_prediction=False, step_size=0.2),
    "equilibrium": EquilibriumPropagation(),
    "feedback alignment": FeedbackAlignment(),
    "direct feedback alignment": DirectFeedbackAlignment(),
    "target propagation": TargetPropagation(),
    "forward-forward": ForwardForward(),
    "readout only": ReadoutOnly(),
}
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5


def cnn(**settings: Any) -> nn.Module:
    torch.manual_seed(1)
    settings.setdefault("dropout", 0.0)
    settings.setdefault("hidden_dropout", 0.0)
    return CNN(input_shape=(1, 8, 8), classes=5, plan=[4, "A", 4], hidden=[8], **settings)


def mlp(*widths: int, act: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(2)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [nn.Linear(a, b, bias=bias), *([act()] if i < len(widths) - 2 else [])]
    return nn.Sequential(*layers)


def gradients(rule: LearningRule, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The rule's gradient in float64, of a network in training mode; 0 where it leaves none."""
    model.double().train().zero_grad()
    torch.manual_seed(3)
    rule.step(model, x.double(), y)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def backprop(model: nn.Module, x: Tensor, y: Tensor, loss: Loss | None = None) -> list[Tensor]:
    model.double().train()
    torch.manual_seed(3)
    return list(torch.autograd.grad((loss or CrossEntropy())(model(x.double()), y), list(model.parameters())))


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest distance of a parameter's gradient, relative to that parameter's, or to a thousandth of all parameters'."""
    least = 1e-3 * float(torch.stack([b.norm() for b in expected]).norm())  # a bias before batch-norm has none
    return max(float((a - b).norm()) / max(float(b.norm()), least) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.1), SquaredError()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("kind", ["cnn", "branchy", "resnet"])
def test_predictive_coding_with_fixed_predictions_is_backprop(kind: str, loss: Loss) -> None:
    """Step size 1, as many rounds as the depth; with batch-norm, dropout, pooling and skip connections."""
    torch.manual_seed(1)
    models = {
        "cnn": cnn(batch_norm=True, dropout=0.2),
        "branchy": Branchy(),
        "resnet": CIFARResNet(depth=8, classes=5),
    }
    model, x = models[kind], torch.rand(4, 3, 16, 16) if kind == "resnet" else IMAGES
    twin = copy.deepcopy(model)
    hops = max(PredictiveCoding().graph(model).hops().values())
    found = gradients(PredictiveCoding(step_size=1.0, iterations=hops, loss=loss), model, x, LABELS[: len(x)])
    assert apart(found, backprop(twin, x, LABELS[: len(x)], loss)) < 1e-10
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers()))


def test_predictive_coding_is_backprop_to_first_order_in_the_weight_of_the_loss() -> None:
    model, x = mlp(4, 6, 6, 5), torch.rand(6, 4)
    expected = backprop(model, x, LABELS)

    def error(w: float) -> float:
        rule = PredictiveCoding(fixed_prediction=False, step_size=0.4, iterations=100, loss_weight=w)
        return apart(gradients(rule, model, x, LABELS), expected)

    assert error(1e-3) < 1e-2
    assert error(1e-2) == pytest.approx(10 * error(1e-3), rel=0.2)


def test_predictive_coding_descends_its_energy_by_hand() -> None:
    """One hidden value v of a linear chain y = b a x: (1 + b^2) v = a x + b t minimises (v - a x)^2/2 + (b v - t)^2/2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    a, b, x, t = 0.7, -1.3, 2.0, 0.4
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(a)
        model.get_parameter("1.weight").fill_(b)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Half(Loss):
        def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
            return (scores - y).square().mean() / 2

    rule = PredictiveCoding(fixed_prediction=False, step_size=0.3, iterations=200, loss=Half())
    first, second = gradients(rule, model, *torch.tensor([[[x]], [[t]]], dtype=torch.float64))
    v = (a * x + b * t) / (1 + b * b)
    assert float(first) == pytest.approx(-(v - a * x) * x, abs=1e-9)
    assert float(second) == pytest.approx((b * v - t) * v, abs=1e-9)


def equilibrium(model: nn.Sequential, x: Tensor, gamma: float, deviations: bool) -> Tensor:
    """Gradient of the loss at the fixed point by implicit differentiation, with Newton's method for the fixed point itself.

    s_1 = tanh(W_1 x + b_1 + gamma W_2^T (s_2 - o_2)), s_2 = tanh(W_2 s_1 + b_2), scores = W_3 s_2 + b_3; o_2 is 0, or s_2 of the
    forward pass, held.
    """
    p = [q.detach().clone().requires_grad_() for q in model.parameters()]
    n1, n2, count = len(p[1]), len(p[3]), len(x)
    origin = model[:4](x).detach() if deviations else 0.0

    def force(s: Tensor, p: list[Tensor]) -> Tensor:
        s1, s2 = s.view(count, n1 + n2).split([n1, n2], 1)
        new = (torch.tanh(x @ p[0].T + p[1] + gamma * (s2 - origin) @ p[2]), torch.tanh(s1 @ p[2].T + p[3]))
        return torch.cat(new, 1).flatten() - s

    s = torch.zeros(count * (n1 + n2), dtype=torch.float64)
    for _ in range(20):
        jacobian = torch.autograd.functional.jacobian(lambda v: force(v, [q.detach() for q in p]), s)
        s = s - torch.linalg.solve(jacobian, force(s, p).detach())
    leaf = s.clone().requires_grad_()
    loss = CrossEntropy()(leaf.view(count, -1)[:, n1:] @ p[4].T + p[5], LABELS[:count])
    by_state, *by_readout = torch.autograd.grad(loss, [leaf, p[4], p[5]])
    jacobian = torch.autograd.functional.jacobian(lambda v: force(v, [q.detach() for q in p]), s)
    costate = torch.linalg.solve(jacobian.T, -by_state)
    return [*torch.autograd.grad(force(s.detach(), p), p[:4], costate), *by_readout]  # type: ignore[return-value]


@pytest.mark.parametrize(("gamma", "feedback_of"), [(1.0, "states"), (0.3, "states"), (0.3, "deviations")])
def test_equilibrium_propagation_is_the_gradient_at_the_fixed_point(gamma: float, feedback_of: Any) -> None:
    """For beta -> 0, against implicit differentiation: an error of beta^2 by two nudged phases, of beta by one."""
    model = mlp(4, 5, 3, 5).double()
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(0.7)
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(5)).double()
    expected = equilibrium(model, x, gamma, feedback_of == "deviations")

    def error(beta: float, nudging: Any) -> float:
        rule = EquilibriumPropagation(
            feedback=gamma, feedback_of=feedback_of, beta=beta, nudging=nudging, iterations=400, tolerance=1e-14
        )
        return apart(gradients(rule, model, x, LABELS[:3]), expected)  # type: ignore[arg-type]

    assert error(1e-3, "symmetric") < 1e-5
    assert error(1e-1, "symmetric") == pytest.approx(100 * error(1e-2, "symmetric"), rel=0.1)
    assert error(1e-2, "one-sided") == pytest.approx(10 * error(1e-3, "one-sided"), rel=0.1)


def test_equilibrium_propagation_is_backprop_for_weak_feedback() -> None:
    """In a network of convolutions and poolings; the gap to the forward pass vanishes too."""
    rule = EquilibriumPropagation(feedback=1e-4, feedback_of="states", beta=1e-2, tolerance=1e-15)
    assert apart(gradients(rule, cnn(), IMAGES, LABELS), backprop(cnn(), IMAGES, LABELS)) < 1e-3
    assert float(rule.step(cnn().double(), IMAGES.double(), LABELS)["gap"]) < 1e-3


def test_a_small_loss_reaches_the_first_state_before_a_phase_ends() -> None:
    """With a loss of 1e-4 of its size the last state changes by less than the tolerance; the first gradients are not 0."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Small(Loss):
        def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
            return 1e-4 * CrossEntropy()(scores, y)

    model, x = mlp(4, 6, 6, 6, 5), torch.rand(6, 4)
    settings: Any = {"loss": Small(), "feedback_of": "states", "beta": 0.2}
    found = gradients(EquilibriumPropagation(tolerance=1e-4, **settings), model, x, LABELS)
    exact = gradients(EquilibriumPropagation(tolerance=1e-14, **settings), model, x, LABELS)
    assert apart(found, exact) < 0.05


def test_deviations_give_backprops_gradient_at_any_loss() -> None:
    """In single precision, with the defaults, at a loss of 2e-6; a correct example, whose error is exactly 0, has gradient 0."""
    model, x = mlp(4, 6, 6, 6, 5), torch.rand(6, 4)
    with torch.no_grad():
        model.get_parameter("6.bias")[0] += 13.0
    labels = torch.zeros(6, dtype=torch.long)
    model.zero_grad()
    EquilibriumPropagation().step(model, x, labels)
    found = [p.grad.double() for p in model.parameters() if p.grad is not None]
    assert apart(found, backprop(copy.deepcopy(model), x, labels)) < 0.05
    merging = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(0, 1), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5))
    EquilibriumPropagation().step(merging, x.view(3, 2, 4), LABELS)
    found = [p.grad.double() for p in merging.parameters() if p.grad is not None]
    assert apart(found, backprop(copy.deepcopy(merging), x.view(3, 2, 4), LABELS)) < 0.05
    with torch.no_grad():
        model.get_parameter("6.bias")[0] += 1000.0
    model.float().zero_grad()
    EquilibriumPropagation().step(model, x, labels)
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("states", [5, 8])
def test_deviations_reach_the_first_of_many_states(states: int) -> None:
    """In single precision, with the defaults: every layer's error relative to its own gradient."""
    model, x = mlp(20, *[40] * states, 5, act=nn.ReLU), torch.rand(32, 20, generator=torch.Generator().manual_seed(6))
    labels = torch.arange(32) % 5
    EquilibriumPropagation().step(model, x, labels)
    found = [p.grad.double() for p in model.parameters() if p.grad is not None]
    for got, expected in zip(found, backprop(model, x, labels), strict=True):
        assert float((got - expected).norm() / expected.norm()) < 0.15


def test_a_deviation_that_rounding_would_lose_is_refused() -> None:
    """By too small a nudge; and of states that are fed back as they are, by weak feedback over many states."""
    model, x = mlp(4, 6, 6, 6, 6, 6, 5).float(), torch.rand(6, 4)
    with pytest.raises(SegmentError, match=r"the state '8' by .* is lost in the rounding .*: use a larger beta, float64"):
        EquilibriumPropagation(beta=1e-6).step(model, x, LABELS)
    with pytest.raises(SegmentError, match=r"the state '\d' by .* all layers up to there"):
        EquilibriumPropagation(feedback_of="states", feedback=0.01, beta=0.2).step(model, x, LABELS)


@pytest.mark.parametrize("feedback", [1e-3, 1e-7])
def test_an_example_with_far_less_feedback_than_the_others_keeps_its_gradient(feedback: float) -> None:
    """In single precision: the last example alone has the last feature, whose weights have their gradient from it alone."""
    model, x = mlp(4, 6, 6, 6, 5, act=nn.ReLU).float(), torch.rand(6, 4, generator=torch.Generator().manual_seed(6))
    x[:, 3], x[5] = 0.0, torch.tensor([0.0, 0.0, 0.0, 1.0])
    with torch.no_grad():  # it takes the first unit of two layers, and a weak weight between them
        first, second = model.get_parameter("0.weight"), model.get_parameter("2.weight")
        first[:, 3], first[0] = -10.0, x[5]
        second[:, 0], second[0] = -10.0, feedback * x[5].new_tensor([1, 0, 0, 0, 0, 0])
        model.get_parameter("2.bias")[0] = 0.0
    EquilibriumPropagation().step(model, x, LABELS)
    (expected, *_), found = backprop(copy.deepcopy(model), x, LABELS), first.grad
    assert found is not None
    assert expected[0, 3]
    assert float(found[0, 3]) == pytest.approx(float(expected[0, 3]), rel=0.01)


def test_a_deviation_lost_in_rounding_counts_by_its_share_of_the_gradient() -> None:
    """An example of saturated neurons has next to no gradient, and does not refuse its batch, unless the batch has no other."""
    model, x = mlp(4, 6, 6, 5).float(), torch.rand(6, 4, generator=torch.Generator().manual_seed(6))
    x[:5, 3], x[5, 3] = 0.0, 1.0
    with torch.no_grad():
        model.get_parameter("0.weight")[:, 3] = 9.0
    EquilibriumPropagation().step(model, x, LABELS)
    found = [p.grad.double() for p in model.parameters() if p.grad is not None]
    assert apart(found, backprop(copy.deepcopy(model), x, LABELS)) < 0.05
    with torch.no_grad():
        model.get_parameter("4.bias")[0] += 1000.0  # the others are correct, with an error of exactly 0
    with pytest.raises(SegmentError, match=r"the state '0' by .* is lost in the rounding"):
        EquilibriumPropagation().step(model, x, torch.tensor([0, 0, 0, 0, 0, 1]))


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU, nn.Softplus])
def test_units_of_each_example_do_not_meet(act: type[nn.Module]) -> None:
    """In the limit, a batch of inputs from 1e-5 to 1e3, a black one and a correct one has the mean of their own gradients."""
    model, x = mlp(4, 6, 6, 6, 5, act=act), torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    x[:6] *= torch.tensor([1e-5, 1e-3, 1e-1, 1.0, 1e2, 1e3]).view(-1, 1)
    x[6], x[7, 0] = 0.0, 1e5
    labels = torch.arange(8) % 5
    with torch.no_grad():
        labels[7] = model(x[7:]).argmax()  # correct by far: without error, where logits grow
    rule = EquilibriumPropagation(beta=1e-5, feedback=1e-5, tolerance=1e-9)
    each = [gradients(rule, model, x[i : i + 1], labels[i : i + 1]) for i in range(8)]
    for i, own in enumerate(each):
        exact = backprop(model, x[i : i + 1], labels[i : i + 1])
        assert apart(own, exact) < 1e-3 if any(g.any() for g in exact) else not any(g.any() for g in own), f"example {i}"
    mean = [torch.stack(g).mean(0) for g in zip(*each, strict=True)]
    assert apart(gradients(rule, model, x, labels), mean) < 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named_and_is_no_noise(bad: float) -> None:
    model, x = mlp(4, 6, 6, 5, act=nn.ReLU), torch.rand(6, 4)
    x[3] = bad
    with pytest.raises(TrainingCollapsed, match=r"not finite in 1 of 6 examples \(the first is number 3\).*check these inputs"):
        EquilibriumPropagation().step(model, x, LABELS)
    assert not torch.isfinite(PredictiveCoding().step(model, x, LABELS)["loss"])  # which fit refuses


def test_states_that_do_not_settle_are_refused() -> None:
    model = mlp(4, 30, 30, 5, act=nn.ReLU)
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(5)
    with pytest.raises(TrainingCollapsed, match="no equilibrium to compare: lower feedback"):
        EquilibriumPropagation(feedback=1.0).step(model, torch.rand(3, 4), LABELS[:3])
    with pytest.raises(TrainingCollapsed, match="do not settle: lower step_size"):
        PredictiveCoding(fixed_prediction=False, step_size=1.0, iterations=30).step(model, torch.rand(3, 4), LABELS[:3])


def test_feedback_alignment_with_transposed_weights_is_backprop() -> None:
    rule, model = FeedbackAlignment(), cnn(batch_norm=True, dropout=0.2).double()
    twin = copy.deepcopy(model)
    rule.prepare(model, IMAGES.double())
    assert apart(gradients(rule, copy.deepcopy(model), IMAGES, LABELS), backprop(copy.deepcopy(model), IMAGES, LABELS)) > 0.1
    for name, held in rule.own.items():
        held.load_state_dict({"0": model.get_parameter(name.replace("/", ".") + ".weight").detach()})
    assert apart(gradients(rule, model, IMAGES, LABELS), backprop(twin, IMAGES, LABELS)) < 1e-10


def test_feedback_alignment_equals_the_formula() -> None:
    rule, model = FeedbackAlignment(std=0.3), mlp(4, 6, 5).double()
    rule.prepare(model, torch.rand(3, 4).double())
    x = torch.rand(3, 4).double()
    first, *_, second, _ = gradients(rule, model, x, LABELS[:3])
    h = model[:2](x).detach()
    error = (model(x).softmax(1) - nn.functional.one_hot(LABELS[:3], 5)).detach() / 3
    (feedback,) = rule.own["2"].parameters()
    assert torch.allclose(second, error.T @ h)
    assert torch.allclose(first, (error @ feedback * (1 - h**2)).T @ x)


def test_direct_feedback_by_the_product_of_later_layers_is_backprop() -> None:
    """Of a linear network; and of one hidden layer with any activation, where it is feedback alignment with W^T."""
    for model in (mlp(4, 6, 7, 5, act=nn.Identity), mlp(4, 6, 5)):
        rule, x = DirectFeedbackAlignment(), torch.rand(6, 4)
        rule.prepare(model.double(), x.double())
        later = [m.weight.detach() for m in model if isinstance(m, nn.Linear)][1:]
        for n, name in enumerate(rule.own):
            product = torch.linalg.multi_dot([*later[:n:-1], later[n]]) if later[n + 1 :] else later[n]
            rule.own[name].load_state_dict({"0": product})
        assert apart(gradients(rule, model, x, LABELS), backprop(model, x, LABELS)) < 1e-10


def test_target_propagation_by_transposed_weights_is_backprop() -> None:
    """Of a linear network; by inverse weights it is the Gauss-Newton target W_2^-1 e."""
    model, x = mlp(4, 6, 6, 5, act=nn.Identity).double(), torch.rand(6, 4)
    rule = TargetPropagation(inverse="linear")
    rule.prepare(model, x.double())
    inverse = rule.own["2"].linear
    assert isinstance(inverse, nn.Linear)
    middle, last = model.get_parameter("2.weight").detach(), model.get_parameter("4.weight").detach()
    with torch.no_grad():
        inverse.weight.copy_(middle.T)
    assert apart(gradients(rule, model, x, LABELS), backprop(model, x, LABELS)) < 1e-10
    with torch.no_grad():
        inverse.weight.copy_(torch.linalg.inv(middle))  # type: ignore[arg-type]
    first, *_ = gradients(rule, model, x, LABELS)
    error = (model(x.double()).softmax(1) - nn.functional.one_hot(LABELS, 5)).detach() / 6
    assert torch.allclose(first, torch.linalg.solve(middle, last.T @ error.T) @ x.double())


def test_an_inverse_learns_to_invert() -> None:
    """Of y = 2 x its weight becomes nearly 1/2; the noise of its training pulls it by nothing, as the layer is exact."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 2))
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
        model.get_parameter("1.weight").fill_(2.0)
    rule, x = TargetPropagation(noise=0.5, inverse="linear"), torch.linspace(-1, 1, 32).reshape(-1, 1)
    rule.prepare(model, x)
    optimizer, told = torch.optim.SGD(rule.parameters(), lr=0.3), {}
    for _ in range(40):
        optimizer.zero_grad()
        told = rule.step(model, x, torch.zeros(32).long())
        optimizer.step()
    assert float(rule.own["1"].linear.weight.detach()) == pytest.approx(0.5, abs=1e-3)  # type: ignore[arg-type, union-attr]
    assert float(told["reconstruction"]) < 1e-4


def test_forward_forward_equals_the_closed_form() -> None:
    """dL/dW = sum over images of -s sigmoid(alpha (g_wrong - g_right)) 2/J h x^T / B, s = 1 for right labels and -1 for wrong."""
    model, rule, x = mlp(4, 6, 5, 5, act=nn.ReLU, bias=False).double(), ForwardForward(sharpness=3.0), torch.rand(6, 4).double()
    rule.prepare(model, x)
    found = gradients(rule, model, x, LABELS)
    torch.manual_seed(3)
    source = torch.cat(rule.labelled(x, LABELS))
    sign = torch.tensor([1.0] * 6 + [-1.0] * 6).double()
    trained: list[Any] = [model[0], model[2]]
    for layer, got in zip(trained, found):
        h = (source @ layer.weight.detach().T).relu()
        g = h.square().mean(1)
        slope = -sign * torch.sigmoid(3.0 * (g[6:] - g[:6])).repeat(2) * 2 / h.shape[1] / 6
        assert torch.allclose(got, (slope[:, None] * h).T @ source)
        source = h / h.square().mean(1, keepdim=True).sqrt()
    assert torch.allclose(found[2], backprop(model, x, LABELS)[2])


def test_forward_forward_puts_other_labels_into_wrong_images() -> None:
    rule, x = ForwardForward(), torch.zeros(400, 4)
    rule.prepare(mlp(4, 6, 5, act=nn.ReLU, bias=False), torch.rand(6, 4))
    right, wrong = rule.labelled(x, torch.arange(400) % 5)
    (patterns,) = rule.own["labels"].parameters()
    code = torch.cdist(wrong, patterns.sign()).argmin(1), torch.cdist(right, patterns.sign()).argmin(1)
    assert torch.equal(patterns.sign()[code[1]], right)
    assert (patterns.sign()[code[0]] == patterns.sign()[code[1]]).all(1).float().mean() < 0.2


def test_an_optimiser_that_would_ignore_the_rate_of_the_last_layer_is_refused() -> None:
    rule, model = ForwardForward(readout_rate=7.0), mlp(4, 6, 5, act=nn.ReLU, bias=False)
    rule.prepare(model, torch.rand(6, 4))
    hidden, last = with_rates(rule.param_groups(model), lr=0.1)
    assert [*hidden["params"], *last["params"]] == [*model.parameters()]
    assert (hidden.get("lr"), last["lr"]) == (None, pytest.approx(0.7))
    optimizer = torch.optim.Adam(rule.param_groups(model), lr=0.1)
    with pytest.raises(ValueError, match=r"would ignore lr_factor of its groups: make it of with_rates\(rule\.param_groups"):
        fit(model, rule, [(torch.rand(6, 4), LABELS)], optimizer, epochs=1)


@pytest.mark.parametrize("name", RULES)
def test_contract_of_a_rule(name: str) -> None:
    """Loss and scores of the forward pass; parameters, buffers and random numbers of prepare as agreed; the same under a seed."""
    rule, model = copy.deepcopy(RULES[name]), cnn().train()
    before = copy.deepcopy(model.state_dict())
    rule.prepare(model, IMAGES)
    found, told = [], {}
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(4)
        told = rule.step(model, IMAGES, LABELS)
        found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    scores = model(IMAGES)
    assert torch.allclose(told["scores"], scores, atol=1e-6)
    assert float(told["loss"]) == pytest.approx(float(CrossEntropy()(scores.detach(), LABELS)), abs=1e-6)
    assert not any(v.requires_grad for v in told.values())
    assert all(v.ndim == 0 for key, v in told.items() if key != "scores")
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*found))  # type: ignore[arg-type]
    trained = [p.grad is not None and bool(p.grad.any()) for p in model.parameters()]
    assert trained == ([False] * 3 + [True] if name == "readout only" else [True] * 4)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert model.training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighted(Loss):
    """Its gradient by the scores does not depend on them."""

    def __call__(self, scores: Tensor, y: Tensor) -> Tensor:
        return (scores * torch.linspace(-1, 1, scores.shape[1]).to(scores)).sum(1).mean()


@pytest.mark.parametrize("name", RULES)
def test_whether_a_first_layer_depends_on_later_weights(name: str) -> None:
    """Locality as the page has it: for the same error of the output, the last weights reach the first layer by W^T, or not."""
    rule = copy.deepcopy(dataclasses.replace(RULES[name], loss=Weighted()))
    model = cnn().double()
    rule.prepare(model, IMAGES.double())
    (before, *_), last = gradients(rule, model, IMAGES, LABELS), [*model.parameters()][3]
    with torch.no_grad():
        last.add_(0.1 * torch.randn_like(last))
    after, *_ = gradients(rule, model, IMAGES, LABELS)
    assert torch.equal(before, after) != name.startswith(("predictive", "equilibrium", "target"))


@pytest.mark.parametrize("name", ["target propagation", "forward-forward"])
def test_an_interrupted_training_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, SegmentRule, torch.optim.Optimizer]:
        torch.manual_seed(8)
        model = CNN(input_shape=(1, 8, 8), classes=10, plan=[4, "A"], hidden=[8], dropout=0.0, hidden_dropout=0.0)
        rule = copy.deepcopy(RULES[name])
        rule.prepare(model, torch.rand(2, 1, 8, 8))
        return model, rule, torch.optim.Adam(with_rates(rule.param_groups(model), lr=1e-2), lr=1e-2)

    (whole, rule), (resumed, again) = uninterrupted_and_resumed(make, tmp_path / "progress.safetensors")
    assert torch.equal(weights(whole), weights(resumed))
    assert all(torch.equal(a, b) for a, b in zip(rule.parameters(), again.parameters()))
    assert len(rule.state_dict()) > 0


def prepared_step(rule: LearningRule, model: nn.Module) -> None:
    rule.prepare(model, IMAGES)
    rule.step(model, IMAGES, LABELS)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


RERUNS = [n for n in RULES if RULES[n].reruns]
CHAINS = [n for n in RULES if RULES[n].chain]


@pytest.mark.parametrize("name", RERUNS)
def test_what_changes_each_time_it_runs_is_refused(name: str) -> None:
    for settings, what in (({"batch_norm": True}, r"features\.1 is BatchNorm2d"), ({"hidden_dropout": 0.1}, r"is Dropout")):
        with pytest.raises(SegmentError, match=rf"{what}.*several times for a batch: use a network without it"):
            copy.deepcopy(RULES[name]).prepare(cnn(**settings), IMAGES)
    noisy = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), Noisy(), nn.Linear(8, 5))
    rule = copy.deepcopy(RULES[name])
    with pytest.raises(SegmentError, match=r"'1' (computes something else each time|is not homogeneous)"):
        prepared_step(rule, noisy)


@pytest.mark.parametrize("name", CHAINS)
def test_skip_connections_are_refused_where_a_chain_is_needed(name: str) -> None:
    with pytest.raises(SegmentError, match=r"needs a chain of segments.*skip connection.*use PredictiveCoding"):
        copy.deepcopy(RULES[name]).prepare(Branchy(), IMAGES)


@pytest.mark.parametrize("name", RULES)
def test_several_outputs_are_refused(name: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 5), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.a(x.flatten(1))
            return self.b(h), self.c(h)

    with pytest.raises(SegmentError, match="takes networks of one output, and this one has 2"):
        copy.deepcopy(RULES[name]).prepare(Two(), IMAGES)


class Own(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


SEPARATE = [FeedbackAlignment(), ActivationRelaxation(backward_weights="fixed"), ActivationRelaxation(backward_weights="learnt")]


@pytest.mark.parametrize("rule", SEPARATE, ids=lambda r: f"{type(r).__name__} {getattr(r, 'backward_weights', '')}")
def test_weights_that_no_backward_weight_replaces_are_refused(rule: LearningRule) -> None:
    """But not in the first layer, beyond which no error goes, and not a bias, which carries none."""
    weight_norm, computed = nn.utils.parametrizations.weight_norm, nn.utils.parametrize.register_parametrization
    tied = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), weight_norm(nn.Linear(8, 5)))
    turned = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.Linear(128, 5))
    for model, x, says in (
        (tied, torch.rand(6, 4), r"2 \(ParametrizedLinear\) would send .* by its own weights.*remove the reparametrisation"),
        (turned, IMAGES, r"1 \(ConvTranspose2d\) would send"),
        (nn.Sequential(Own(4, 8), nn.Tanh(), Own(8, 5)), torch.rand(6, 4), r"2 \(Own\) would send"),
    ):
        with pytest.raises(SegmentError, match=says):
            copy.deepcopy(rule).prepare(model, x)
        with pytest.raises(SegmentError, match=says):
            copy.deepcopy(rule).step(model, x, LABELS)
    for first in (weight_norm(nn.Linear(4, 8)), Own(4, 8)):
        taken = nn.Sequential(first, nn.Tanh(), computed(nn.Linear(8, 5), "bias", nn.Identity()))
        ours = copy.deepcopy(rule)
        ours.prepare(taken, torch.rand(6, 4))
        ours.step(taken, torch.rand(6, 4), LABELS)
        assert [*ours.own] == ["2"]
        assert all(p.grad is not None and p.grad.any() for p in taken.parameters())
    with pytest.raises(ValueError, match=r"prepare"):
        copy.deepcopy(rule).step(mlp(4, 6, 5), torch.rand(6, 4), LABELS)


def test_other_networks_that_a_rule_cannot_train_are_refused() -> None:
    with pytest.raises(SegmentError, match=r"is not homogeneous \(it has a bias"):
        ForwardForward().prepare(mlp(4, 6, 5, act=nn.ReLU), torch.rand(3, 4))
    unbiased = mlp(4, 6, 5, act=nn.ReLU)
    nn.init.zeros_(unbiased.get_parameter("0.bias"))
    with pytest.raises(SegmentError, match=r"is not homogeneous \(it has a bias"):  # it would not stay 0
        ForwardForward().prepare(unbiased, torch.rand(3, 4))
    with pytest.raises(SegmentError, match=r"is not homogeneous \(.*saturates"):  # these values are below 6
        ForwardForward().prepare(mlp(4, 6, 5, act=nn.ReLU6, bias=False), torch.rand(3, 4))
    silent = mlp(4, 6, 5)
    nn.init.zeros_(silent.get_parameter("2.weight"))
    with pytest.raises(SegmentError, match=r"2\.weight has the standard deviation 0\.0"):
        FeedbackAlignment().prepare(silent, torch.rand(3, 4))
    with pytest.raises(SegmentError, match="iterations is 1, and the loss needs 2 to reach the first of 2 states"):
        EquilibriumPropagation(iterations=1).prepare(mlp(4, 6, 6, 5), torch.rand(3, 4))
    with pytest.raises(SegmentError, match="makes a state of each activation, and found none"):
        EquilibriumPropagation().prepare(mlp(4, 6, 5, act=nn.Identity), torch.rand(3, 4))
    wide = nn.Sequential(*(nn.Linear(a, b, device="meta") for a, b in pairwise((1, 9000, 9000, 5))))
    with pytest.raises(SegmentError, match="would have 81,000,000 weights, more than 67,108,864: use Direct"):
        TargetPropagation().prepare(wide, torch.rand(2, 1, device="meta"))
    rule, model = ForwardForward(), mlp(4, 6, 5, act=nn.ReLU, bias=False)
    rule.prepare(model, torch.rand(6, 4))
    with pytest.raises(LabelError, match="give class numbers"):
        rule.step(model, torch.rand(6, 4), torch.full((6, 5), 0.2))
    direct = DirectFeedbackAlignment()
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    direct.prepare(pooled, IMAGES)
    with pytest.raises(SegmentError, match="all batches must have the image size that prepare was given"):
        direct.step(pooled, torch.rand(6, 1, 12, 12), LABELS)
    with pytest.raises(ValueError, match=r"makes what it holds for 'features\.0' in prepare: call rule\.prepare"):
        DirectFeedbackAlignment().step(cnn(), IMAGES, LABELS)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PredictiveCoding(step_size=0.0), r"step_size is 0\.0"),
        (lambda: PredictiveCoding(iterations=0), "iterations is 0"),
        (lambda: PredictiveCoding(loss_weight=0.1), "cancels out with fixed predictions"),
        (lambda: PredictiveCoding(loss_weight=-1.0, fixed_prediction=False), r"loss_weight is -1\.0"),
        (lambda: EquilibriumPropagation(feedback=0.0), r"feedback is 0\.0"),
        (lambda: EquilibriumPropagation(beta=-1.0), r"beta is -1\.0"),
        (lambda: EquilibriumPropagation(iterations=0), "iterations is 0"),
        (lambda: EquilibriumPropagation(nudging="both"), "nudging is 'both'"),  # type: ignore[arg-type]
        (lambda: FeedbackAlignment(std=0.0), r"std is 0\.0"),
        (lambda: DirectFeedbackAlignment(std=-1.0), r"std is -1\.0"),
        (lambda: TargetPropagation(noise=0.0), r"noise is 0\.0"),
        (lambda: TargetPropagation(inverse="gelu"), "inverse is 'gelu'"),  # type: ignore[arg-type]
        (lambda: ForwardForward(sharpness=0.0), r"sharpness is 0\.0"),
    ],
)
def test_invalid_settings_of_a_rule_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
