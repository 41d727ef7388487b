"""Activation Relaxation against autograd: exact in its limit, the binomial law elsewhere, and its relaxed forms by hand."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from spikeprop import Digits, fit
from spikeprop.ann import CNN, CIFARResNet, ResNet
from spikeprop.errors import SegmentError
from spikeprop.learn import CrossEntropy, Loss, SquaredError
from spikeprop.plugins import ActivationRelaxation
from spikeprop.plugins.activation_relaxation.relax import Sweep, adjoints, enough_sweeps, relax
from tests.learn.test_fit import small_ann, uninterrupted_and_resumed, weights
from tests.learn.test_segments import Branchy

SWEEPS: list[Sweep] = ["jacobi", "gauss-seidel", "settling"]


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    grey, colour = torch.rand(6, 1, 8, 8), torch.rand(4, 3, 16, 16)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5))
    cnn = CNN(input_shape=(1, 8, 8), classes=5, plan=[4, "A", 4], hidden=[8], batch_norm=True)
    return {
        "mlp": (mlp, grey),
        "cnn": (cnn, grey),
        "branchy": (Branchy(), grey),
        "resnet": (ResNet(depth=8, input_shape=(3, 16, 16), classes=5), colour),
        "cifar resnet": (CIFARResNet(depth=20, classes=5), colour),
    }


def compared(model: nn.Module, x: Tensor, rule: ActivationRelaxation) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The network with the rule's gradient, a copy with autograd's gradient, and the rule's metrics."""
    y = torch.arange(len(x)) % 5
    ours = model.double().train()
    ours.zero_grad()
    plain = copy.deepcopy(ours)
    rule.prepare(ours, x.double())
    torch.manual_seed(3)
    result = rule.step(ours, x.double(), y)
    torch.manual_seed(3)
    loss = rule.loss(plain(x.double()), y)
    loss.backward()
    assert torch.equal(result["loss"], loss.detach())
    return ours, plain, result


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs = list(zip(a.parameters(), b.parameters()))
    assert all(p.grad is not None and q.grad is not None for p, q in pairs)
    return max(float((p.grad - q.grad).abs().max()) for p, q in pairs)  # type: ignore[operator]


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.1), SquaredError()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("kind", list(networks()))
def test_full_step_size_is_backprop(kind: str, sweep: Sweep, loss: Loss) -> None:
    """eta = 1: Jacobi after as many sweeps as the depth, the others after one; with batch-norm, dropout and skips."""
    model, x = networks()[kind]
    rule = ActivationRelaxation(step_size=1.0, sweep=sweep, loss=loss, measure_angle=True)
    ours, plain, told = compared(model, x, rule)
    assert largest_difference(ours, plain) <= 1e-10
    assert float(told["angle"]) < 1e-3
    assert float(told["iterations"]) == (max(rule.graph(model).hops().values()) if sweep == "jacobi" else 1)
    if sweep != "jacobi":
        assert float(told["backward_passes"]) == 1
        assert float(told["residual"]) < 1e-12
    for a, b in zip(ours.buffers(), plain.buffers()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize(("eta", "sweeps"), [(0.1, 20), (0.3, 9), (0.5, 3)])
def test_relaxation_follows_the_binomial_law(eta: float, sweeps: int, sweep: Sweep) -> None:
    torch.manual_seed(1)
    layers = [m for _ in range(6) for m in (nn.Linear(7, 7), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(7, 5))
    x = torch.rand(6, 7)
    rule = ActivationRelaxation(step_size=eta, iterations=sweeps, start="zero", sweep=sweep)
    ours, plain, told = compared(model, x, rule)
    assert float(told["backward_passes"]) <= 1  # a chain: every product is a multiple of the first
    for segment in rule.graph(model).segments:
        k = rule.graph(model).hops()[segment.name]
        tries = sweeps if sweep == "jacobi" or k == 0 else sweeps + k - 1
        share = float(binom.sf(k - 1, tries, eta)) if sweep != "settling" else (1 - (1 - eta) ** sweeps) ** k
        expected = plain.get_submodule(segment.name).weight.grad
        assert isinstance(expected, Tensor)
        got = ours.get_submodule(segment.name).weight.grad
        assert isinstance(got, Tensor)
        assert (got - share * expected).abs().max() <= 1e-10


def test_the_law_holds_for_every_path_through_a_skip() -> None:
    """Paths of different lengths have different fractions: y = C(relu(B a) + a) as matrices."""
    torch.manual_seed(2)
    rule = ActivationRelaxation(step_size=0.3, iterations=4, sweep="jacobi", settled=0)

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.c(self.b(h) + h)

    ours, _, _ = compared(Skip(), torch.rand(3, 4), rule)
    assert isinstance(ours, Skip)
    graph = rule.graph(ours)
    assert [s.reads for s in graph.segments][-1] == (graph.segments[-2].name,)
    x = torch.rand(3, 4).double()
    y = torch.arange(3)
    ours.zero_grad()
    scores = rule.step(ours, x, y)["scores"].requires_grad_()
    (clamped,) = torch.autograd.grad(rule.loss(scores, y), scores)
    hops = graph.hops()
    long = binom.sf(hops["a"] - 1, 4, 0.3)
    short = binom.sf(hops["a"] - 2, 4, 0.3) if len(graph.segments) == 4 else long
    joined = clamped @ ours.c.weight.detach()
    expected = (long * joined @ ours.b.weight.detach() + short * joined).T @ x
    assert ours.a.weight.grad is not None
    assert (ours.a.weight.grad - expected).abs().max() <= 1e-10


def test_enough_sweeps_are_enough_a_tolerance_stops_early_and_settled_segments_cost_nothing() -> None:
    model, x = networks()["cifar resnet"]
    for sweep in SWEEPS:
        rule = ActivationRelaxation(step_size=0.5, sweep=sweep, measure_angle=True)
        _, _, told = compared(model, x, rule)
        assert float(told["angle"]) < 0.3
        assert float(told["residual"]) < 0.01
        # settled segments are not differentiated again, though directions change while paths of other lengths arrive
        assert float(told["backward_passes"]) <= (1 if sweep == "settling" else 0.5 * float(told["iterations"]))
        few = ActivationRelaxation(step_size=0.5, sweep=sweep, tolerance=0.3)
        _, _, early = compared(model, x, few)
        assert float(early["residual"]) < 0.3
        assert float(early["iterations"]) < float(told["iterations"])


@pytest.mark.parametrize("missing", [1e-3, 1e-9])
@pytest.mark.parametrize("hops", [1, 6, 40])
def test_enough_sweeps_are_the_fewest_of_the_law(hops: int, missing: float) -> None:
    for eta in (0.1, 0.5):
        jacobi = enough_sweeps(hops, eta, "jacobi", missing)
        assert binom.cdf(hops - 1, jacobi, eta) <= missing < binom.cdf(hops - 1, jacobi - 1, eta)
        assert enough_sweeps(hops, eta, "gauss-seidel", missing) == jacobi - hops + 1
        updates = enough_sweeps(hops, eta, "settling", missing)
        assert 1 - (1 - (1 - eta) ** updates) ** hops <= missing


@functools.cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network at a small loss, images and labels."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)).double()
    x, y = torch.rand(20, 1, 8, 8).double(), torch.arange(20) % 5
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


@pytest.mark.parametrize("start", ["zero", "activation"])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_gradient_is_backprops_at_a_small_loss(sweep: Sweep, start: Any) -> None:
    """The activations, from which the paper starts, are then thousands of times larger than the adjoints."""
    model, x, y = trained()
    model.zero_grad()
    told = ActivationRelaxation(sweep=sweep, start=start, measure_angle=True).step(model, x, y)
    assert float(told["loss"]) < 0.05
    assert float(told["angle"]) < 1
    assert float(told["backward_passes"]) <= (3 if start == "zero" else 300)


class TwoOutputs(nn.Module):
    """An output in the middle, which later layers read too, and one at the end; or the same value twice."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 5), nn.Linear(5, 7), nn.Linear(7, 5)
        self.twice = twice

    def forward(self, x: Tensor) -> Any:
        early = self.a(x.flatten(1))
        late = self.c(torch.tanh(self.b(torch.tanh(early))))
        return (late, late) if self.twice else {"early": early, "late": late}


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_networks_with_several_outputs_and_losses(sweep: Sweep, twice: bool) -> None:
    torch.manual_seed(5)
    model, x = TwoOutputs(twice).double(), torch.rand(6, 1, 8, 8).double()
    labels = (torch.arange(6) % 5, torch.arange(6) % 3)
    losses: list[Loss] = [CrossEntropy(), SquaredError()]
    plain = copy.deepcopy(model)
    found = plain(x)
    outputs = found if twice else tuple(found.values())
    sum(f(a, b) for f, a, b in zip(losses, outputs, labels)).backward()  # type: ignore[union-attr]
    told = ActivationRelaxation(step_size=1.0, sweep=sweep, losses=losses, measure_angle=True).step(model, x, labels)
    assert largest_difference(model, plain) <= 1e-10
    assert torch.equal(told["scores"], outputs[0].detach())
    with pytest.raises(SegmentError, match=r"the network has 2 outputs .*1 losses.*give losses, one for each output"):
        ActivationRelaxation().step(model, x, labels[0])


def test_start_at_activations_reaches_the_same_fixed_point() -> None:
    model, x = networks()["mlp"]
    ours, plain, _ = compared(model, x, ActivationRelaxation(step_size=0.2, iterations=400, start="activation"))
    assert largest_difference(ours, plain) <= 1e-10


@pytest.mark.parametrize("drop", ["never", "relaxation", "always"])
@pytest.mark.parametrize("kind", ["symmetric", "learnt", "fixed"])
def test_relaxed_forms_equal_hand_computed_values(kind: Any, drop: Any) -> None:
    model, x = networks()["mlp"]
    rule = ActivationRelaxation(
        step_size=1.0, backward_weights=kind, drop_derivative=drop, loss=SquaredError(), measure_angle=True
    )
    ours, _, told = compared(model, x, rule)
    first, second, third = (m for m in ours if isinstance(m, nn.Linear))  # type: ignore[attr-defined]
    h0 = x.double().flatten(1)
    h1 = first(h0).tanh().detach()
    h2 = second(h1).tanh().detach()
    target = nn.functional.one_hot(torch.arange(6) % 5, 5)
    x3 = 2 * (third(h2).detach() - target) / 6
    b2, b3 = (
        second.weight.detach() if kind == "symmetric" else rule.own["3"][0].detach(),  # type: ignore[index]
        third.weight.detach() if kind == "symmetric" else rule.own["5"][0].detach(),  # type: ignore[index]
    )
    slope2, slope1 = 1 - h2**2, 1 - h1**2
    relaxed2 = x3 @ b3
    relaxed1 = (relaxed2 * (slope2 if drop == "never" else 1)) @ b2
    pre2 = relaxed2 * (1 if drop == "always" else slope2)
    pre1 = relaxed1 * (1 if drop == "always" else slope1)
    for layer, delta, below in ((third, x3, h2), (second, pre2, h1), (first, pre1, h0)):
        assert (layer.weight.grad - delta.T @ below).abs().max() <= 1e-10
        assert (layer.bias.grad - delta.sum(0)).abs().max() <= 1e-10
    if kind == "learnt":
        assert all(torch.equal(next(rule.own[n].parameters()).grad, ours.get_submodule(n).weight.grad) for n in "135")  # type: ignore[arg-type]
    assert (float(told["angle"]) < 1e-3) == (kind == "symmetric" and drop == "never")
    assert len(list(rule.parameters())) == (0 if kind == "symmetric" else 3)


def test_backward_weights_work_inside_residual_networks_and_convolutions() -> None:
    for kind in ("branchy", "cifar resnet"):
        model, x = networks()[kind]
        rule = ActivationRelaxation(step_size=1.0, backward_weights="learnt", drop_derivative="relaxation", backward_std=None)
        ours, plain, _ = compared(model, x, rule)
        assert largest_difference(ours, plain) > 1e-4
        for name, held in rule.own.items():
            held.load_state_dict({"0": ours.get_parameter(name.replace("/", ".") + ".weight").detach()})
        ours.zero_grad()
        symmetric = ActivationRelaxation(step_size=1.0, backward_weights="learnt")
        symmetric.own.update(rule.own)
        torch.manual_seed(3)
        ours.load_state_dict(plain.state_dict())
        symmetric.step(ours, x.double(), torch.arange(len(x)) % 5)
        assert largest_difference(ours, plain) <= 1e-10  # B = W: backprop again


def test_unfrozen_pass_uses_jacobians_at_present_activations() -> None:
    model, x = networks()["mlp"]
    paper: Any = {"step_size": 0.5, "sweep": "jacobi", "start": "activation"}
    rule = ActivationRelaxation(iterations=1, frozen=False, **paper)
    ours, plain, _ = compared(model, x, rule)
    graph = rule.graph(model)
    frozen, _, _ = compared(copy.deepcopy(plain), x, ActivationRelaxation(iterations=1, **paper))
    assert largest_difference(ours, frozen) <= 1e-10  # the first sweep is at the activations of the forward pass
    longer, _, _ = compared(copy.deepcopy(plain), x, ActivationRelaxation(iterations=9, frozen=False, **paper))
    still, _, _ = compared(copy.deepcopy(plain), x, ActivationRelaxation(iterations=9, **paper))
    assert largest_difference(longer, still) > 1e-5
    assert len(graph.segments) == 3
    with pytest.raises(SegmentError, match=r"features\.1 is BatchNorm2d, whose output changes.*frozen: true"):
        ActivationRelaxation(frozen=False, **paper).graph(CNN(input_shape=(1, 8, 8), classes=5, plan=[4], batch_norm=True))


def test_relax_keeps_the_fixed_point() -> None:
    from spikeprop.learn.segments import SegmentPass, segment_graph

    model, x = networks()["cnn"]
    graph = segment_graph(model.double())
    run = SegmentPass(graph, x.double())
    clamped = {graph.output: torch.randn_like(run.output)}
    fixed = adjoints(graph, run.vjp, clamped)
    for sweep in SWEEPS:
        relaxed = relax(graph, run.vjp, fixed, clamped, step_size=0.3, sweeps=5, sweep=sweep)
        assert float(relaxed.residual) < 1e-12
        assert all(torch.allclose(relaxed.x[name], value, atol=1e-13) for name, value in fixed.items())


def test_learnt_backward_weights_resume_exactly(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, ActivationRelaxation, torch.optim.Optimizer]:
        torch.manual_seed(8)
        model, rule = small_ann(), ActivationRelaxation(step_size=0.5, backward_weights="learnt")
        rule.prepare(model, torch.zeros(2, 1, 8, 8))
        return model, rule, torch.optim.Adam(rule.param_groups(model), lr=1e-2)

    (whole, rule), (resumed, again) = uninterrupted_and_resumed(make, tmp_path / "progress.safetensors")
    assert torch.equal(weights(whole), weights(resumed))
    assert all(torch.equal(a, b) for a, b in zip(rule.parameters(), again.parameters()))


def test_it_learns_digits_as_well_as_backprop() -> None:
    from spikeprop import Backprop, ann_accuracy

    found = {}
    for name, rule in {"ar": ActivationRelaxation(step_size=0.5), "backprop": Backprop()}.items():
        model = small_ann()
        fit(model, rule, Digits().train(32, seed=1), torch.optim.Adam(model.parameters(), lr=3e-3), epochs=6)
        found[name] = ann_accuracy(model, Digits().test(360).epoch(0))
    assert found["ar"] > 80
    assert abs(found["ar"] - found["backprop"]) < 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"step_size": 0.0}, r"step_size is 0\.0; it must lie in"),
        ({"iterations": 0}, "iterations is 0"),
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"backward_std": 0.0}, "backward_std is 0"),
        ({"sweep": "gauss"}, "sweep is 'gauss'; use settling, gauss-seidel, jacobi"),
        ({"start": "zeros"}, "start is 'zeros'"),
        ({"backward_weights": "random"}, "backward_weights is 'random'"),
        ({"drop_derivative": "relax"}, "drop_derivative is 'relax'"),
        ({"settled": 1.0}, r"settled is 1\.0"),
        ({"frozen": False}, "start is zero and sweep is settling: use start: activation, and sweep: gauss-seidel or jacobi"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ActivationRelaxation(**settings)


def test_a_step_size_that_never_arrives_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step_size is 1e-09, which needs more than 1,000,000,000 sweeps"):
        enough_sweeps(5, 1e-9, "jacobi")


def test_backward_weights_for_a_reparametrised_weight_are_refused() -> None:
    """It is another tensor each time, so W^T would have been used in its place."""
    model, x = networks()["mlp"]
    nn.utils.parametrizations.weight_norm(model.get_submodule("3"))
    with pytest.raises(
        SegmentError, match=r"3 \(Parametrized.*by its own weights.*remove the reparametrisation or weight sharing"
    ):
        ActivationRelaxation(backward_weights="fixed").prepare(model, x)
    ActivationRelaxation().prepare(model, x)


def test_step_without_prepare_is_refused() -> None:
    model, x = networks()["mlp"]
    with pytest.raises(ValueError, match=r"call rule\.prepare"):
        ActivationRelaxation(backward_weights="fixed").step(model, x, torch.arange(6) % 5)
