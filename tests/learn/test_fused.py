"""``fit`` runs torch's optimisers fused where it can: the same results in every memory layout, and resumed from either kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from spikeprop import Backprop, fit
from spikeprop.learn import Callback, TrainingState
from spikeprop.learn.checkpoint import load_checkpoint, load_optimizer, save_checkpoint
from spikeprop.learn.fused import align, can_be_fused, fused_steps

Make = Callable[..., Optimizer]
MAKES: dict[str, Make] = {
    "Adam": lambda p, **more: Adam(p, lr=1e-2, weight_decay=1e-3, amsgrad=True, **more),
    "AdamW": lambda p, **more: AdamW(p, lr=1e-2, **more),
    "SGD": lambda p, **more: SGD(p, lr=1e-2, momentum=0.9, nesterov=True, **more),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 3, 6, 6), torch.randint(0, 4, (6,))) for _ in range(5)]


def difference(one: nn.Module, other: nn.Module) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters()))


class SeesFused(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step(self, training: TrainingState) -> None:
        self.seen.append(training.optimizer.param_groups[0]["fused"])


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_is_fused_and_its_result_the_plain_ones(name: str, layout: torch.memory_format) -> None:
    found, watch = [], SeesFused()
    for more in ({}, {"foreach": False}):
        net = model().to(memory_format=layout)
        optimizer = MAKES[name](net.parameters(), **more)
        fit(net, Backprop(), batches(), optimizer, epochs=2, callbacks=[watch])
        assert optimizer.param_groups[0]["fused"] is None
        found.append(net)
    assert watch.seen == [True] * 10 + [None] * 10
    assert difference(*found) < 1e-6


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("plain", ["before", "after"])
def test_a_checkpoint_of_either_kind_resumes(tmp_path: Path, name: str, plain: str) -> None:
    """Parameters that lie channels-last, too, whose state a checkpoint holds contiguously."""
    nets = [model().to(memory_format=torch.channels_last) for _ in range(2)]
    whole, cut = nets
    fit(whole, Backprop(), batches(), MAKES[name](whole.parameters()), epochs=2)
    file = tmp_path / "progress.safetensors"
    first = MAKES[name](cut.parameters(), **({"fused": False} if plain == "before" else {}))
    fit(cut, Backprop(), batches(), first, epochs=1, seed=0)
    save_checkpoint(file, cut, {}, first)
    second = MAKES[name](cut.parameters(), **({"fused": False} if plain == "after" else {}))
    load_optimizer(second, load_checkpoint(file))
    assert second.param_groups[0]["fused"] is (False if plain == "after" else None)
    fit(cut, Backprop(), batches(), second, epochs=1)
    assert difference(whole, cut) < 1e-6


def test_gradients_and_state_that_lie_otherwise_are_put_right() -> None:
    """torch's fused kernels would pair the wrong numbers without a word."""
    nets = [model(), model()]
    optimizers = [Adam(net.parameters(), lr=1e-2) for net in nets]
    for net, optimizer in zip(nets, optimizers):
        for layout in (torch.channels_last, torch.contiguous_format):
            torch.manual_seed(2)
            for p in net.parameters():
                p.grad = torch.randn_like(p)
                if p.dim() == 4 and net is nets[1]:
                    p.grad = p.grad.contiguous(memory_format=layout)
            if net is nets[0]:
                optimizer.step()
                continue
            with fused_steps(optimizer, net):
                align(optimizer)
                optimizer.step()
    assert difference(*nets) < 1e-6


def test_what_cannot_be_fused_or_was_chosen_stays_as_it_is() -> None:
    net = model()
    assert can_be_fused(Adam(net.parameters()), net)
    assert not can_be_fused(RMSprop(net.parameters()), net)
    assert not can_be_fused(Adam(net.parameters(), foreach=True), net)
    assert not can_be_fused(Adam(net.parameters(), fused=False), net)
    assert not can_be_fused(type("Own", (Adam,), {})(net.parameters()), net)
    assert not can_be_fused(SGD(net.parameters(), differentiable=True), net)
    sparse = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    assert not can_be_fused(SGD(sparse.parameters()), sparse)


@pytest.mark.parametrize("name", MAKES)
def test_parameters_that_are_trained_later_or_start_anew_take_the_same_steps(name: str) -> None:
    found = []
    for more in ({}, {"foreach": False}):
        net: Any = model()
        net[3].requires_grad_(False)
        optimizer = MAKES[name](net.parameters(), **more)
        fit(net, Backprop(), batches(), optimizer, epochs=1)
        net[3].requires_grad_(True)
        fit(net, Backprop(), batches(), optimizer, epochs=1)
        del optimizer.state[net[0].weight]
        fit(net, Backprop(), batches(), optimizer, epochs=1)
        assert name != "SGD" or optimizer.state[net[0].weight]["momentum_buffer"].any()
        found.append(net)
    assert difference(*found) < 1e-6


def test_momentum_with_dampening_is_not_fused() -> None:
    net = model()
    assert not can_be_fused(SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.1), net)
