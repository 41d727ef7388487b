"""A spiking network that was built by itself is saved with its structure, and loaded without the code that built it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

import spikeprop
from spikeprop import IF, GradedIF, Integrator, SignedIF, TemporalBatchNorm, Triangle, spiking
from spikeprop.errors import CheckpointError, SimulationError
from spikeprop.experiment.network_checkpoint import load_network
from spikeprop.learn import load_checkpoint
from spikeprop.learn.checkpoint import save_checkpoint
from spikeprop.snn import LayerDynamics, NeuronState, SpikingMaxPool
from spikeprop.snn.described_call import call_again
from tests.convert.test_building import KINDS, Residual


class Mixed(nn.Module):
    """Other classes of operations and neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), TemporalBatchNorm(4, 3, alpha=0.7, eps=1e-3), SignedIF(),
            nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3, groups=2, bias=False), GradedIF(levels=7), SpikingMaxPool(2),
            nn.Unflatten(1, (1, 2)), nn.Flatten(), nn.Linear(50, 3), IF(surrogate=Triangle(height=0.5)), nn.Linear(3, 2),
            Integrator(leak=0.6, trainable=("leak",)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize(("kind", "shape"), [*KINDS, (Mixed, (2, 6, 6))], ids=lambda case: getattr(case, "__name__", ""))
def test_round_trip_is_the_same_network(kind: type[nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = spiking(kind().double(), shape)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    spikeprop.save(network, tmp_path / "net.safetensors")
    again = spikeprop.load(tmp_path / "net.safetensors")
    x = 2 * torch.randn(3, *shape).double()
    with torch.no_grad():
        assert torch.equal(network.eval()(x, 3), again(x, 3))
    assert str(again.layers) == str(network.layers)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in network.parameters()]


def test_what_is_shared_stays_shared(tmp_path: Path) -> None:
    spikeprop.save(spiking(Residual(), (2, 5, 5)), tmp_path / "net.safetensors")
    again = spikeprop.load(tmp_path / "net.safetensors")
    assert again._layer("again").neuron is again._layer("again_2").neuron
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in Residual().parameters())


class Attending(nn.Module):
    """Attention with a causal mask, a layer norm, and functions with constants of several kinds."""

    gains: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).triu(1))
        self.register_buffer("gains", torch.rand(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0])
        x = x + F.gelu(self.hidden(x), approximate="tanh") * torch.pow(self.gains + x.sigmoid(), 2)
        return self.out(x.mean(1))


def test_attention_and_functions_are_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 5, 4)
    network = spikeprop.convert(Attending().eval(), x, timesteps=4)
    spikeprop.save(network, tmp_path / "net.safetensors")
    again = spikeprop.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(network(x, 4), again(x, 4))


@pytest.mark.parametrize("name", ["torch.load", "torch.hub.load", "os.system", "numpy", "__class__"])
def test_function_that_a_file_names_is_one_of_the_list(name: str) -> None:
    call = {"args": [{"operand": 0}], "kwargs": {}, "forms": [[0, 1, 1]], "form": [0, 1, 1], "changes": False}
    for target in ({"function": name}, {"method": name}):
        with pytest.raises(SimulationError, match="which a description does not know"):
            call_again({**call, "target": target}, lambda _: nn.Identity())


class Several(nn.Module):
    """Returns tensors in a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = torch.relu(self.hidden(x))
        return {"a": self.a(h), "rest": [self.b(h), (self.a(h)[:, 0],)]}


def test_structure_of_several_outputs_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 6)
    network = spikeprop.convert(Several(), x, IF(v_init=0.5), spikeprop.MaxActivation())
    spikeprop.save(network, tmp_path / "net.safetensors", timesteps=5)
    again = spikeprop.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        given, found = network(x, 5), again(x, 5)
    assert found.keys() == given.keys()
    assert torch.equal(found["a"], given["a"])
    assert torch.equal(found["rest"][0], given["rest"][0])
    assert isinstance(found["rest"][1], tuple)
    assert torch.equal(found["rest"][1][0], given["rest"][1][0])
    assert again.notes == ["made for T = 5"]


class Photographs(Dataset[Any]):
    """As torchvision's ImageFolder keeps its transform."""

    root = "photos"
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))])

    def __len__(self) -> int:
        return 2


def test_data_and_steps_that_a_file_cannot_name_are_refused_with_what_to_pass(tmp_path: Path) -> None:
    network = spiking(nn.Sequential(nn.Linear(2, 2), IF(), nn.Linear(2, 2)), input_shape=(2,))
    file, photographs = tmp_path / "net.safetensors", Photographs()
    for data in (photographs, DataLoader(photographs), DataLoader(Subset(photographs, [0]))):
        with pytest.raises(CheckpointError, match=r"ImageFolder\(root='photos', mean=\[0.5, 0.4, 0.3\], std=\[0.2, 0.2, 0.2\]"):
            spikeprop.save(network, file, data=data)  # type: ignore[arg-type]
    for steps in (0, 4.0, True):
        with pytest.raises(CheckpointError, match="give a whole number of at least 1"):
            spikeprop.save(network, file, timesteps=steps)  # type: ignore[arg-type]
    assert not file.exists()


def test_what_is_no_spiking_network_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Linear is no spiking network; save an ANN with torch\.save"):
        spikeprop.save(nn.Linear(2, 2), tmp_path / "net.safetensors")  # type: ignore[arg-type]
    network = spiking(nn.Sequential(nn.Linear(3, 4), IF(), nn.Linear(4, 2)), (3,))
    with pytest.raises(CheckpointError, match=r"does not end in \.safetensors"):
        spikeprop.save(network, tmp_path / "net.pt")


def test_data_and_steps_are_kept_for_the_command_line(tmp_path: Path) -> None:
    network = spiking(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), IF(), nn.Linear(4, 10)), (1, 8, 8))
    spikeprop.save(network, tmp_path / "net.safetensors", timesteps=3, data=spikeprop.Digits(mean=0.25, std=0.5))
    loaded = load_network(tmp_path / "net.safetensors")
    assert loaded.timesteps == 3
    assert {key: loaded.data[key] for key in ("use", "mean", "std")} == {"use": "Digits", "mean": 0.25, "std": 0.5}


class Forgetful(LayerDynamics):
    """Does not keep its constructor's argument."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.factor = 2 * gain

    def step(self, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        return (self.factor * current > 1).to(current), state


def test_neuron_that_would_be_another_one_is_refused(tmp_path: Path) -> None:
    network = spiking(nn.Sequential(nn.Linear(3, 4), Forgetful(2.0), nn.Linear(4, 2)), (3,))
    with pytest.raises(CheckpointError, match="Forgetful whose 'factor' does not follow"):
        spikeprop.save(network, tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["layers"][0]["synapses"][0]["ops"][0].update(use="os.system"), "code from outside|no Module"),
        (lambda d: d["layers"][0]["synapses"][0]["ops"][0].update(use="posixpath.join"), "no Module"),
        (lambda d: d["layers"][0]["synapses"][0]["ops"][0]["settings"].update(in_channels=10**6, out_channels=10**6), "far more"),
        (lambda d: d["layers"][0].pop("neuron"), "cannot be built"),
        (lambda d: d.update(input_shape=[2**20, 2**20]), "at most"),
        (lambda d: d["layers"][0].update(name="renamed"), "renamed"),
    ],
)
def test_description_that_was_changed_is_refused(change: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    network = spiking(Residual(), (2, 5, 5))
    spikeprop.save(network, path)
    described = json.loads(json.dumps(load_checkpoint(path).description))
    change(described["network"])  # type: ignore[operator]
    save_checkpoint(path, network, {k: v for k, v in described.items() if k not in ("aliases", "format")})
    with pytest.raises(CheckpointError, match=words):
        load_network(path)


@pytest.mark.parametrize("read", ["mean", "last", "max"])
def test_how_the_output_is_read_is_kept(read: Any, tmp_path: Path) -> None:
    network = spiking(nn.Sequential(nn.Linear(4, 6), IF(), nn.Linear(6, 2)), 4, read=read)
    spikeprop.save(network, tmp_path / "net.safetensors")
    again = spikeprop.load(tmp_path / "net.safetensors")
    x = 2 * torch.rand(3, 4)
    assert again.read == read
    with torch.no_grad():
        assert torch.equal(again(x, 5), network.eval()(x, 5))
