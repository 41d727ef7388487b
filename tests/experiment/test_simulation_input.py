"""``export`` from the library says how images are normalised, or ``simulate`` asks; one number, or one a channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikeprop import IF, Direct
from spikeprop.data import CIFAR10, NMNIST, Digits
from spikeprop.deploy import export, read_nir
from spikeprop.errors import NirError
from spikeprop.experiment.network_checkpoint import data_component, data_settings, reading
from spikeprop.experiment.simulation_input import open_simulation_input
from spikeprop.snn import INPUT, Layer, SpikingNetwork, Synapse
from tests.cli.test_cli import spikeprop

MEANS, STDS = [0.49, 0.48, 0.45], [0.2, 0.21, 0.22]


def network(shape: tuple[int, int, int] = (1, 8, 8)) -> SpikingNetwork:
    torch.manual_seed(0)
    size = shape[0] * shape[1] * shape[2]
    first = Synapse([nn.Flatten(), nn.Linear(size, 12)])
    layers = {"a": Layer([(INPUT, first)], IF()), "out": Layer([("a", Synapse([nn.Linear(12, 10)]))], None)}
    return SpikingNetwork(layers, Direct(), shape).eval()


def test_a_file_that_does_not_say_the_normalisation_is_not_simulated_with_another(tmp_path: Path) -> None:
    export(network(), tmp_path / "n.nir", timesteps=4, data="Digits")
    with open_simulation_input(tmp_path / "n.nir") as found:
        asked: list[tuple[Any, str]] = [({}, "--mean and --std"), ({"std": 1.0}, "--mean"), ({"mean": 0.5}, "--std")]
        for given, missing in asked:
            with pytest.raises(NirError, match=f"does not say how its network's images are normalised.*pass {missing} .one"):
                found.with_options(timesteps=None, **given).images(3)
        images, _ = found.with_options(timesteps=None, mean=0.5, std=0.25).images(3)
    torch.testing.assert_close(images, next(Digits(mean=0.5, std=0.25).test(3).epoch(0))[0])


@pytest.mark.parametrize(
    "given",
    [
        {"data": Digits(mean=0.5, std=0.25)},
        {"data": "Digits", "mean": 0.5, "std": [0.25]},
        {"data": Digits(), "mean": 0.5, "std": 0.25},
    ],
    ids=["object", "name", "both"],
)
def test_export_keeps_the_data_and_their_normalisation(tmp_path: Path, given: dict[str, Any]) -> None:
    export(network(), tmp_path / "n.nir", timesteps=4, **given)
    with open_simulation_input(tmp_path / "n.nir") as found:
        assert dict(found.data) == {"use": "Digits", "mean": 0.5, "std": 0.25}
        assert found.timesteps == 4
    result = spikeprop("simulate", tmp_path / "n.nir", "--backend", "reference", "--samples", 5, "--precision", "fixed")
    assert result.exit_code == 0, result.output
    assert read_nir(tmp_path / "n.nir").metadata["timesteps"] == 4


def test_one_mean_for_each_channel(tmp_path: Path) -> None:
    photographs = network((3, 32, 32))
    export(photographs, tmp_path / "n.nir", timesteps=2, data=CIFAR10(mean=MEANS, std=STDS))
    with open_simulation_input(tmp_path / "n.nir") as found:
        assert dict(found.data) == {"use": "CIFAR10", "mean": MEANS, "std": STDS}
    wrongs: list[Any] = [{"mean": [0.1, 0.2]}, {"std": 0.0}, {"std": [1.0, -1.0, 1.0]}, {"mean": float("nan")}]
    for wrong in wrongs:
        with pytest.raises(NirError, match="one number, or one for each of 3 channels"):
            export(photographs, tmp_path / "never.nir", data="CIFAR10", **wrong)
    assert not (tmp_path / "never.nir").exists()


def test_means_of_channels_are_given_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    export(network(), tmp_path / "n.nir", timesteps=4, data="Digits")
    from spikeprop.experiment.simulation_input import SimulationInput

    monkeypatch.setattr(SimulationInput, "images", lambda self, samples: seen.append(self.data) or 1 / 0)
    spikeprop("simulate", tmp_path / "n.nir", "--mean", "0.49,0.48,0.45", "--std", "0.2, 0.21,0.22")
    assert seen == [{"use": "Digits", "mean": MEANS, "std": STDS}]


def test_recordings_in_a_folder_of_another_name_are_found_again_unless_the_user_names_one() -> None:
    about = data_settings({"use": "NMNIST", **reading(NMNIST(frames=4, subfolder="small"))})
    assert data_component(about).build() == NMNIST(frames=4, subfolder="small")
    assert data_component(about, root="elsewhere").build() == NMNIST(frames=4, root="elsewhere")
    assert data_component({**about, "root": "elsewhere"}).build() == NMNIST(frames=4, root="elsewhere")
    assert data_component(about, named="CIFAR10DVS").arguments.get("subfolder") is None
