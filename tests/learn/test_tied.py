"""Tied weights in checkpoints: stored once, restored tied, in ANNs, spiking networks, optimisers and rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeprop import IF, Backprop, MaxActivation, convert, fit
from spikeprop.errors import CheckpointError
from spikeprop.learn import load_checkpoint, load_model, save_checkpoint
from spikeprop.learn.checkpoint import load_optimizer
from spikeprop.runtime.files import read_tensors, write_tensors


class Tied(nn.Module):
    """Two linear layers with one weight, by two names."""

    def __init__(self, tied: bool = True):
        super().__init__()
        self.first, self.act, self.second, self.out = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.second(self.act(self.first(x)))))


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), 0.01)


def test_tied_weights_are_stored_once_and_restored_tied_with_the_optimiser(tmp_path: Path) -> None:
    model, other, file = Tied(), Tied(), tmp_path / "n.safetensors"
    optimizer, second = adam(model), adam(other)
    model(torch.rand(4, 8)).sum().backward()
    optimizer.step()
    save_checkpoint(file, model, {}, optimizer)
    assert "model.second.weight" not in read_tensors(file)[0]
    assert json.loads(file.with_suffix(".json").read_text())["aliases"] == {"model.second.weight": "model.first.weight"}
    load_model(other, load_checkpoint(file))
    load_optimizer(second, load_checkpoint(file))
    assert other.second.weight is other.first.weight
    assert torch.equal(other.first.weight, model.first.weight)
    assert all(
        torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in zip(optimizer.state.values(), second.state.values(), strict=True)
    )


def test_training_of_tied_weights_resumes(tmp_path: Path) -> None:
    batches = [(torch.rand(8, 8), torch.arange(8) % 3)]

    def trained(epochs: list[int], file: Path | None) -> Tensor:
        model = Tied()
        for n in epochs:
            torch.manual_seed(0)
            model = Tied()
            fit(model, Backprop(), batches * n, adam(model), epochs=2, checkpoint=file)
        return model.first.weight.detach()

    torch.testing.assert_close(trained([3], None), trained([3, 3], tmp_path / "p.safetensors"), rtol=0, atol=0)


@pytest.mark.parametrize("make", ["module used twice", "bias shared"])
def test_spiking_networks_with_tied_tensors_are_saved(tmp_path: Path, make: str) -> None:
    torch.manual_seed(0)
    ann = Tied()
    if make == "bias shared":
        ann.second.bias = ann.first.bias
    else:
        ann.second = ann.first
    network = convert(ann, [torch.rand(16, 8)], IF(), MaxActivation())
    save_checkpoint(tmp_path / "s.safetensors", network, {})
    other = convert(ann, [torch.rand(16, 8)], IF(), MaxActivation())
    load_model(other, load_checkpoint(tmp_path / "s.safetensors"))
    x = torch.rand(4, 8)
    assert torch.equal(other(x, 5), network(x, 5))


def test_views_and_parts_of_one_memory_are_copied(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tensors = {"a": base, "b": base.view(3, 4), "c": base[2:5], "d": base.view(3, 4).T, "empty": base[:0]}
    write_tensors(tmp_path / "t.safetensors", tensors)
    found, _ = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_networks_tied_in_another_way_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "n.safetensors"
    save_checkpoint(file, Tied(), {})
    with pytest.raises(
        CheckpointError, match=r"second\.weight and model\.first\.weight are tied in the file, and not in the network"
    ):
        load_model(Tied(tied=False), load_checkpoint(file))
    save_checkpoint(file, Tied(tied=False), {})
    with pytest.raises(CheckpointError, match="are tied in the network, and differ in the file"):
        load_model(Tied(), load_checkpoint(file))


@pytest.mark.parametrize(
    "aliases", [["model.x"], {"model.second.weight": "model.nothing"}, {"model.first.weight": "model.first.bias"}, {"a": 1}]
)
def test_invalid_aliases_of_a_file_are_refused(tmp_path: Path, aliases: Any) -> None:
    described = {"spikeprop": json.dumps({"format": 1, "aliases": aliases})}
    write_tensors(tmp_path / "n.safetensors", {f"model.{k}": v for k, v in Tied(tied=False).state_dict().items()}, described)
    with pytest.raises(CheckpointError, match="aliases"):
        load_checkpoint(tmp_path / "n.safetensors")
