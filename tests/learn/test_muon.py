"""MuonSGD against a singular value decomposition, torch's SGD and a step by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import spikeprop as sp
from spikeprop.learn import BiasRate, MuonSGD, with_rates
from spikeprop.learn.muon import orthogonalised


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 5)).double()


def gradients(model: nn.Module, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7), (1, 9)])
@pytest.mark.parametrize(("steps", "least"), [(3, 0.02), (5, 0.002)])
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, int], steps: int, least: float) -> None:
    torch.manual_seed(1)
    u, s, vt = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0, torch.log10(torch.tensor(least * 2.5)).item(), len(s), dtype=torch.float64)
    found = u.T @ orthogonalised(3.7 * u @ torch.diag(s) @ vt, steps) @ vt.T
    torch.testing.assert_close(found, torch.diag(torch.diagonal(found)))
    assert torch.diagonal(found).min() > 0.65
    assert torch.diagonal(found).max() < 1.25
    assert not orthogonalised(torch.zeros(shape), steps).any()


def test_vectors_and_the_last_matrix_follow_sgd() -> None:
    ours, theirs = network(), network()
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}
    muon = MuonSGD(ours.parameters(), **settings)
    sgd = torch.optim.SGD(theirs.parameters(), nesterov=True, **settings)
    for step in range(3):
        for model, optimizer in ((ours, muon), (theirs, sgd)):
            gradients(model, step)
            optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        alike = torch.allclose(a, b, rtol=1e-12, atol=0)
        assert alike == (a.ndim == 1 or name == "4.weight"), name


@pytest.mark.parametrize("constant_norm", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_takes_the_step_by_hand(constant_norm: bool, layout: torch.memory_format) -> None:
    model = network().to(memory_format=layout)
    convolution = model[0]
    assert isinstance(convolution, nn.Conv2d)
    weight, optimizer = convolution.weight, MuonSGD(
        model.parameters(), lr=1.0, matrix_lr=0.2, momentum=0.5, weight_decay=0.1, constant_norm=constant_norm, steps=3
    )  # fmt: skip
    expected, sums = weight.detach().clone(), torch.zeros(6, 27, dtype=torch.float64)
    for step in range(2):
        gradients(model, step)
        assert weight.grad is not None
        grad = weight.grad.reshape(6, 27)
        sums = 0.5 * sums + grad
        u, s, vt = torch.linalg.svd(grad + 0.5 * sums, full_matrices=False)
        s = s / s.norm()
        for _ in range(3):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        expected = expected * (6**0.5 / expected.norm() if constant_norm else 1 - 0.2 * 0.1)
        expected = expected - 0.2 * (u @ torch.diag(s) @ vt).view(6, 3, 3, 3)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, check_stride=False)


def test_rates_of_groups_are_factors_on_both_rates() -> None:
    model = network()
    groups = BiasRate(lr=64).param_groups(model, [{"params": list(model.parameters())}])
    optimizer = MuonSGD(with_rates(groups, lr=0.5, weight_decay=0.0), lr=0.5, matrix_lr=0.1)
    assert {(g["orthogonal"], g["lr"], len(g["params"])) for g in optimizer.param_groups} == {
        (False, 32.0, 3), (True, 0.1, 2), (False, 0.5, 1),
    }  # fmt: skip
    halved = MuonSGD([{"params": list(model.parameters()), "lr": 0.25}], lr=0.5, matrix_lr=0.1)
    assert {(g["orthogonal"], g["lr"]) for g in halved.param_groups} == {(True, 0.05), (False, 0.25)}


def test_a_saved_state_goes_on_exactly() -> None:
    model = network()
    optimizer = MuonSGD(model.parameters())
    gradients(model, 0)
    optimizer.step()
    other = copy.deepcopy(model)
    second = MuonSGD(other.parameters())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, second)):
        gradients(m, 1)
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_a_closure_is_computed_with_gradients() -> None:
    model = network()
    optimizer = MuonSGD(model.parameters())

    def closure() -> torch.Tensor:
        loss = model(torch.ones(1, 3, 6, 6, dtype=torch.float64)).square().sum()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    loss = optimizer.step(closure)
    assert loss is not None
    assert loss > 0
    assert all(not torch.equal(a, b) for a, b in zip(model.parameters(), before))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"lr": -1}, "lr"),
        ({"matrix_lr": float("nan")}, "matrix_lr"),
        ({"momentum": 1}, "momentum"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"lr": 0}, "lr"),
        ({"lr": float("inf")}, "lr"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is"):
        MuonSGD(network().parameters(), **wrong)  # type: ignore[arg-type]


def test_parts_of_a_matrix_are_refused() -> None:
    class Part(torch.Tensor):
        pass

    with pytest.raises(ValueError, match="complete matrices"):
        MuonSGD([nn.Parameter(torch.zeros(2, 2).as_subclass(Part))])
    with pytest.raises(ValueError, match="no complex form"):
        MuonSGD([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="run the network once"):
        MuonSGD(nn.LazyLinear(3).parameters())
    with pytest.raises(TypeError):
        MuonSGD(set(network().parameters()))


def following(optimizer: MuonSGD, model: nn.Module) -> list[str]:
    """Names of the parameters that follow Muon."""
    muon = {id(p) for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]}
    return [name for name, p in model.named_parameters() if id(p) in muon]


def test_thresholds_and_gains_of_channels_are_no_matrices() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    )
    neuron = sp.IF(surrogate=sp.Triangle(), trainable=("threshold",))
    spiking = sp.convert(model, [torch.rand(8, 2, 4, 4)], neuron, calibrator=sp.MaxActivation(per="channel"))
    assert any(p.ndim == 3 and p.requires_grad for p in spiking.parameters())  # thresholds (C, 1, 1)
    names = following(MuonSGD(spiking.parameters()), spiking)
    assert len(names) == 2
    assert all(name.endswith("weight") for name in names)
    gained = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 2))
    assert following(MuonSGD(gained.parameters()), gained) == ["0.parametrizations.weight.original1"]


def test_forms_of_groups() -> None:
    model, rest = network(), nn.Linear(5, 5).double()
    expected = ["0.weight", "2.weight"]
    assert following(MuonSGD(model.named_parameters()), model) == expected
    assert following(MuonSGD({"params": [p]} for p in model.parameters()), model) == expected
    from_generator = MuonSGD([{"params": model.parameters()}])
    assert following(from_generator, model) == expected
    assert sum(len(g["params"]) for g in from_generator.param_groups) == 6
    assert following(MuonSGD([{"params": list(model.parameters()), "orthogonal": False}]), model) == []
    own = [
        {"params": model[4].weight, "orthogonal": False},
        {"params": [*model[0].parameters(), *model[2].parameters(), model[4].bias]},
    ]
    optimizer = MuonSGD(own[:1], lr=0.1, matrix_lr=0.01)
    optimizer.add_param_group(own[1])
    assert following(optimizer, model) == expected
    optimizer.add_param_group({"params": rest.parameters(), "lr": 0.2})
    assert following(optimizer, rest) == ["weight"]
    assert [g["lr"] for g in optimizer.param_groups[-2:]] == pytest.approx([0.02, 0.2])
    gradients(model, 0)
    optimizer.step()
    with pytest.raises(ValueError, match="momentum is"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "momentum": 1.5})


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e18])
def test_the_size_of_a_gradient_does_not_matter(size: float) -> None:
    torch.manual_seed(0)
    grad, found = torch.randn(64, 300), []
    for factor in (1.0, size):
        weight = nn.Parameter(torch.zeros(64, 300))
        weight.grad = grad * factor
        MuonSGD([{"params": [weight], "orthogonal": True}], matrix_lr=0.1).step()
        found.append(weight.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)  # 1e-38 has few digits
    assert found[0].norm() == pytest.approx(0.1 * 8, rel=0.3)


def test_a_silent_layer_stays_where_it_is() -> None:
    weight = nn.Parameter(torch.randn(8, 12))
    optimizer = MuonSGD([{"params": [weight], "orthogonal": True}], constant_norm=True)
    weight.grad = torch.randn(8, 12)
    optimizer.step()
    before, weight.grad = weight.detach().clone(), torch.zeros(8, 12)
    for _ in range(400):
        optimizer.step()
    assert torch.equal(weight, before)
    zero = nn.Parameter(torch.zeros(64, 64))
    zero.grad = torch.randn(64, 64)
    MuonSGD([{"params": [zero], "orthogonal": True}], constant_norm=True).step()
    assert zero.isfinite().all()
