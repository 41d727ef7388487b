"""`convert` and `finetune`: from a trained network of one's own to a report by one command, and on without questions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from spikeprop import Backprop, Digits, fit
from spikeprop.cli import main
from spikeprop.data import LabelledData
from spikeprop.errors import RecipeError, RunError
from spikeprop.experiment.class_order import better_order, missing_classes
from spikeprop.experiment.finetuning import finetuning_recipe
from spikeprop.experiment.own_network import OwnNetwork, _code, ann_settings, own_recipe
from spikeprop.experiment.preprocessing import (
    NONE,
    OWN,
    _best,
    _called,
    _Fit,
    _timm_cut,
    chosen_normalisation,
    fitting_shape,
    known_transform,
    unfitting_classes,
)
from spikeprop.experiment.trained_ann import find_start
from spikeprop.recipe import check_component, load_recipe

MYNET = '''
from torch import nn
from torch.nn import functional as F

class MyNet(nn.Module):
    """As someone has it: batch-norm, ReLU and pooling by functions."""

    def __init__(self, width=16, classes=10):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.out = nn.Linear(16 * width, classes)

    def forward(self, x):
        return self.out(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
'''


def spikeprop(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mynet.py and its weights, trained on normalised digits, as a trainer saves them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "mynet.py").write_text(MYNET)
    made: dict[str, Any] = {}
    exec(MYNET, made)
    torch.manual_seed(0)
    net = made["MyNet"](width=8)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    fit(net, Backprop(), Digits(mean=0.5, std=0.5).train(32, 0), optimizer, epochs=2)
    torch.save({"epoch": 2, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def converted(home: Path) -> tuple[Path, str]:
    """The folder that one command made, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        result = spikeprop(
            "convert", "mynet.py:MyNet", "ann.width=8", "--weights", "best.pt", "--data", "Digits", "--timesteps", "2,4",
            "--samples", 1, "--backend", "reference", "convert.images=64", "--out", "runs/mine",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    return home / "runs" / "mine", " ".join(result.output.split())


def test_one_command_evaluates_exports_simulates_and_reports(converted: tuple[Path, str]) -> None:
    folder, said = converted
    report = json.loads((folder / "report.json").read_text())
    assert report["ann"]["accuracy"] > 85
    assert set(report["converted"]["accuracy"]) == {"2", "4"}
    assert min(report["converted"]["accuracy"].values()) > report["ann"]["accuracy"] - 8
    assert report["simulate"]["spikes_equal"]
    assert report["simulate"]["backend"] == "reference"
    assert {"network.nir", "report.html", "converted.safetensors"} <= {file.name for file in folder.iterdir()}
    assert "mean 0.5, std 0.5 (a half, cross-entropy " in said  # found, and not the default 0 and 1
    assert "calibrated for T = 4" in said
    assert "outputs 0 = 0, 1 = 1, 2 = 2, " in said
    assert "energy an image (arithmetic, 45 nm) ANN" in said
    assert "energy an image (chip estimate, first Loihi) SNN" in said


def test_commands_on_the_folder_ask_nothing_and_a_copy_is_refused(
    converted: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = converted
    monkeypatch.chdir(tmp_path)  # mynet.py is not here
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    for verb in (("eval", "--limit", 20), ("simulate", "--backend", "reference", "--samples", 1), ("finetune",)):
        _forget_imports(folder, monkeypatch)
        refused = spikeprop(verb[0], copied, *verb[1:])
        assert refused.exit_code == 1
        assert f"--import {folder.parents[1] / 'mynet.py'}" in " ".join(refused.output.split())
    evaluated = spikeprop("eval", folder, "--limit", 20)
    assert evaluated.exit_code == 0, evaluated.output


def test_finetune_trains_the_converted_network_in_a_folder_of_its_own(converted: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = converted
    limits = ("data.train_limit=128", "data.test_limit=100", "simulate.samples=0", "convert.images=64")
    result = spikeprop("finetune", folder, *limits, "--epochs", 1, "--timesteps", 2, "--out", tmp_path / "tuned")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "GradedIF, as converted; calibrated for T = 2, and not for 4" in said
    assert "BPTT at T = 2, 1 epoch, batches of 32, Adam, lr 0.0001" in said
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["finetuned_epochs"] == 1
    ann = [(path / "ann.safetensors").read_bytes() for path in (folder, tmp_path / "tuned")]
    assert ann[0] == ann[1]  # taken over, not trained
    assert _neurons_that_moved(tmp_path / "tuned") == {"GradedIF"}
    kept = spikeprop("finetune", folder, *limits, "--epochs", 1, "--timesteps", 4, "--out", tmp_path / "kept")  # its own T
    assert kept.exit_code == 0, kept.output
    assert "calibrated for T = 4, and not" not in " ".join(kept.output.split())
    assert _neurons_that_moved(tmp_path / "kept") == {"GradedIF"}
    runs = (folder, tmp_path / "kept", tmp_path / "tuned")
    made = [load_recipe(str(run / "recipe.yaml")).describe()["convert"] for run in runs]
    assert [convert["calibrator"]["timesteps"] for convert in made] == [4, 4, 2]
    assert made[0] == made[1] | {"images": made[0]["images"]}
    assert spikeprop("finetune", tmp_path / "nothing").exit_code == 1
    other = spikeprop("finetune", folder, "train.epochs=3", "--out", tmp_path / "other")
    assert other.exit_code == 1
    assert "the trained ANN of" in other.output
    assert not (tmp_path / "other").exists()


def test_finetune_says_and_does_what_overrides_make_of_the_neurons(converted: tuple[Path, str]) -> None:
    folder, _ = converted  # GradedIF, calibrated for T = 4

    def of(*overrides: str, steps: int | None) -> tuple[str, Any]:
        recipe, rows = finetuning_recipe(folder, overrides, timesteps=steps, epochs=1, lr=None)
        return dict(rows)["neuron"], recipe.experiment

    for given, steps in (((), 2), (("finetune.timesteps=2",), 4)):  # one number of steps, given in two ways
        row, experiment = of(*given, steps=steps)
        assert row == "GradedIF, as converted; calibrated for T = 2, and not for 4"
        assert experiment.finetune.timesteps == experiment.convert.calibrator.describe()["timesteps"] == 2
        assert 2 in experiment.evaluate.timesteps
    row, experiment = of("convert.neuron=IF", steps=2)
    assert experiment.convert.neuron.use == "IF"
    assert row.startswith("IF, as given, in place of the converted GradedIF")
    row, experiment = of("convert.timesteps=8", steps=2)
    assert row == "GradedIF, as converted; calibrated for T = 8, and not for 4"
    assert experiment.convert.calibrator.describe()["timesteps"] == 8
    with pytest.raises(RunError, match="set other keys one by one"):
        of("finetune=3", steps=2)


def _neurons_that_moved(folder: Path) -> set[str]:
    """The kinds of neurons of a fine-tuned network, all of whose weights are others than before."""
    before, after = load_file(folder / "converted.safetensors"), load_file(folder / "finetuned.safetensors")
    weights = [name for name in after if name.endswith("weight")]
    assert len(weights) == 2
    assert not any(torch.equal(before[name], after[name]) for name in weights)
    return {json.loads((folder / "finetuned.json").read_text())["neuron"]["use"]}


def test_a_finetuned_network_is_trained_further(converted: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = converted
    limits = ("data.train_limit=64", "data.test_limit=50", "simulate.samples=0", "convert.images=64")
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    nothing = spikeprop("finetune", folder, *limits, "--network", "finetuned")
    assert "has no fine-tuned network" in " ".join(nothing.output.split())
    begun = ("--epochs", 1, "--timesteps", 4, "--lr", 1e-3, "--out", first)
    began = spikeprop("finetune", folder, *limits, *begun)
    assert began.exit_code == 0, began.output
    standing = ("data.test_limit=50", "simulate.samples=0", "--timesteps", 2, "--lr", 1e-12)  # a rate at which nothing moves
    further = spikeprop("finetune", first, *standing, "--out", second)
    assert further.exit_code == 0, further.output
    assert "fine-tuned at T = 4, and trained further" in " ".join(further.output.split())
    assert spikeprop("finetune", first, *standing, "--network", "converted", "--out", third).exit_code == 0
    tuned = {run: load_file(run / "finetuned.safetensors") for run in (first, second, third)}
    before = load_file(third / "converted.safetensors")
    for name, weight in tuned[first].items():
        assert torch.allclose(tuned[second][name], weight, atol=1e-9)
        assert torch.allclose(tuned[third][name], before[name], atol=1e-9)
    assert any(not torch.allclose(tuned[first][name], before[name], atol=1e-5) for name in before)
    anew = spikeprop("finetune", first, "convert.images=32", "--out", tmp_path / "anew")
    assert anew.exit_code == 1
    assert "--network converted" in " ".join(anew.output.split())
    alone = spikeprop("run", second / "recipe.yaml", "--out", tmp_path / "alone")  # refused before its ANN is trained
    assert alone.exit_code == 1
    assert "set finetune.start=null" in " ".join(alone.output.split())
    assert not (tmp_path / "alone").exists()


@pytest.fixture(scope="module")
def tuned(converted: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The folder of a fine-tuned network, that of the same trained further, and the command that made the second."""
    first, second = (tmp_path_factory.mktemp("tuned") / name for name in ("first", "second"))
    limits = ("data.train_limit=32", "data.test_limit=20", "simulate.samples=0", "convert.images=32")
    began = spikeprop("finetune", converted[0], *limits, "--epochs", 1, "--timesteps", 2, "--out", first)
    assert began.exit_code == 0, began.output
    command = ["finetune", str(first), "--timesteps", "1", "--out", str(second)]
    further = spikeprop(*command)
    assert further.exit_code == 0, further.output
    return first, second, command


def _lose_finetuning(folder: Path) -> None:
    """As a run that was killed in its fine-tuning."""
    stages = json.loads((folder / "stages.json").read_text())
    done = {name: stage for name, stage in stages.items() if name in ("data", "ann", "convert")}
    (folder / "stages.json").write_text(json.dumps(done))
    for name in ("finetuned.safetensors", "report.json"):
        (folder / name).unlink()


def test_a_run_that_lost_the_network_it_trains_further_gets_it_back(tuned: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    first, second, command = tuned
    folder = tmp_path / "second"
    shutil.copytree(second, folder)
    (folder / "start.safetensors").unlink()
    ended = spikeprop("run", folder / "recipe.yaml", "--out", folder)  # finished: nothing reads the network any more
    assert ended.exit_code == 0, ended.output
    _lose_finetuning(folder)
    alone = spikeprop("run", folder / "recipe.yaml", "--out", folder)
    assert "run `spikeprop finetune` with the folder" in " ".join(alone.output.split())
    again = spikeprop(*command[:-1], folder)
    assert again.exit_code == 0, again.output
    assert (folder / "start.safetensors").read_bytes() == (first / "finetuned.safetensors").read_bytes()
    found, expected = (load_file(run / "finetuned.safetensors") for run in (folder, second))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_recipe_finds_what_it_trains_further_in_the_folder_of_either_run(tuned: tuple[Path, Path, list[str]]) -> None:
    first, second, _ = tuned
    recipe, new = load_recipe(str(second / "recipe.yaml")), second.parent / "new"
    assert find_start(new, recipe, first) == first / "finetuned.safetensors"
    assert find_start(new, recipe, second) == second / "start.safetensors"
    with pytest.raises(RunError, match="which is not in"):
        find_start(new, recipe, None)


@pytest.mark.parametrize(
    ("lost", "arguments", "says"),
    [
        ("file", (), "to start from the conversion, give --network converted"),
        ("half", (), "first/finetuned.safetensors is damaged or not a safetensors file"),
        ("stage", (), "is not finished: the command that began it continues; to start from the conversion, give --network"),
        ("stage", ("--network", "finetuned"), "is not finished: the command that began it continues"),
        ("", ("finetune.start=null",), "--network says which network is trained"),
        ("", ("finetune={rule: BPTT, optimizer: Adam, schedule: Cosine, timesteps: 2}",), "set other keys one by one"),
        ("", ("finetune.epochs=0",), "epochs is 0; set start to null, or epochs"),
        ("", ("--network", "converted", "finetune.epochs=0"), "use `spikeprop convert`"),
    ],
)  # fmt: skip
def test_a_finetuning_that_would_not_train_what_it_says_is_refused_before_it_begins(
    lost: str, arguments: tuple[str, ...], says: str, tuned: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(tuned[0], tmp_path / "first")
    file = tmp_path / "first" / "finetuned.safetensors"
    if lost == "file":
        file.unlink()
    if lost == "half":
        file.write_bytes(file.read_bytes()[:1000])
    if lost == "stage":
        _lose_finetuning(tmp_path / "first")
    result = spikeprop("finetune", tmp_path / "first", *arguments)
    assert result.exit_code == 1
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "first-finetuned").exists()


def test_a_run_from_scratch_has_no_ann_to_convert_or_finetune(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"recipe": {}}')
    (tmp_path / "trained.safetensors").touch()
    for verb in ("finetune", "convert"):
        result = spikeprop(verb, tmp_path, "--timesteps", 2)
        assert result.exit_code == 1
        assert "was trained from scratch; to train one for longer, run its recipe" in " ".join(result.output.split())


def test_a_run_calls_the_function_that_its_recipe_names_and_a_stranger_does_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").touch()  # so that nothing can be recorded there
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "made25.py").write_text(f"{MYNET}\n\ndef make(width=8):\n    return MyNet(width)\n")
    (tmp_path / "made.yaml").write_text(
        f"data: Digits\nann: {{use: made25.py:make, weights: {home / 'best.pt'}}}\nconvert: {{timesteps: 2}}\n"
    )
    result = spikeprop("run", "made.yaml", "--smoke")
    assert result.exit_code == 0, result.output
    assert "cannot be recorded as your own" in result.output
    refused = spikeprop("eval", "runs/made-smoke", "--limit", 4)
    assert refused.exit_code == 1
    assert "may not call functions by itself" in refused.output
    named = f"{tmp_path / 'made25.py'}:make"
    assert f"--import {named}" in "".join(refused.output.split()).replace("--import", "--import ")
    assert spikeprop("eval", "runs/made-smoke", "--limit", 4, "--import", named).exit_code == 0


def _forget_imports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: modules that were imported may be named by a file."""
    from spikeprop.runtime import imports

    monkeypatch.setattr(imports, "_files", {})
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(folder.parents[1])])
    sys.modules.pop("mynet", None)


# what is named, and what is found out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "weights", "expected"),
    [
        ("torchvision:resnet18", None, {"use": "TorchvisionModel", "name": "resnet18", "weights": "DEFAULT"}),
        ("torchvision:resnet18", "mine.pth", {"use": "TorchvisionModel", "name": "resnet18", "weights": "mine.pth"}),
        ("timm:resnet18", None, {"use": "TimmModel", "name": "resnet18", "weights": "pretrained"}),
        ("nets/model.onnx", None, {"use": "OnnxModel", "path": "nets/model.onnx"}),
        ("onnx:model.onnx", None, {"use": "OnnxModel", "path": "model.onnx"}),
        ("my.nets:Net", "a.pt", {"use": "my.nets:Net", "weights": "a.pt"}),
        ("CIFARResNet", "a.pt", {"use": "CIFARResNet", "weights": "a.pt"}),
    ],
)
def test_source_and_weights_name_a_network(source: str, weights: str | None, expected: dict[str, str]) -> None:
    assert ann_settings(source, weights) == expected


@pytest.mark.parametrize(
    ("source", "weights", "says"),
    [
        ("best.pt", None, r"best.pt has tensors .* mynet.py:MyNet --weights best.pt"),
        ("mynet.py", "best.pt", r"name the class in it too, as in mynet.py:MyNet; it has Other, MyNet"),
        ("model.onnx", "best.pt", "has its own weights; leave --weights out"),
    ],
)
def test_half_a_network_is_refused_with_the_other_half(
    source: str, weights: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text("class Other:\n    pass\n\nclass MyNet:\n    pass\n")
    with pytest.raises(RecipeError, match=says):
        ann_settings(source, weights)


def test_paths_hold_in_any_working_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert ann_settings("mynet.py:MyNet", "best.pt#state_dict") == {
        "use": f"{home / 'mynet.py'}:MyNet",
        "weights": f"{home / 'best.pt'}#state_dict",
    }
    monkeypatch.chdir(home.parent)
    assert _code(home.name) == home.name  # a folder that is called like a data set is no data set


class Centred(nn.Module):
    """Predicts the class of a brightness by its distance from the ones that it was made for, which are normalised."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.centres = nn.Parameter((torch.linspace(0.05, 0.95, 4) - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        return -300 * (x.mean((1, 2, 3)).unsqueeze(1) - self.centres).square()


class Brightness(Digits):
    """Uniform images of four brightnesses, as digits."""

    classes = 4

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        labels = torch.arange(64) % 4
        return (16 * torch.linspace(0.05, 0.95, 4))[labels].round().to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), labels


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (0.1307, 0.3081)])
def test_the_normalisation_that_a_network_was_trained_with_is_found(mean: float, std: float) -> None:
    data = check_component(LabelledData, {"use": f"{__name__}.Brightness"}, "data")
    found, text = chosen_normalisation(Centred(mean, std), data, {})
    assert found == {"mean": mean, "std": std}
    assert "100 % of 64 training images" in text
    assert "WARNING" not in text
    kept, text = chosen_normalisation(Centred(mean, std), data, {"mean": -1.0, "std": 0.5})
    assert kept == {"mean": -1.0, "std": 0.5}  # the user's stays, with a warning that names the better one
    assert "WARNING: it fits far worse than" in text
    assert f"mean {mean:.4g}, std {std:.4g}" in text
    half, _ = chosen_normalisation(Centred(mean, std), data.replace(std=0.25), {"mean": -1.0})
    assert half == {"mean": -1.0, "std": 0.25}  # what is not given is the data set's own


@pytest.mark.parametrize(("channels", "side"), [(1, 24), (3, 24), (3, 32)])
def test_the_shape_that_a_network_reads_is_found(channels: int, side: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (30, 40)).save(tmp_path / name / f"{number}.png")
    net = nn.Sequential(nn.Conv2d(channels, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * side**2, 2))
    data = check_component(LabelledData, {"use": "ImageFolder", "root": str(tmp_path)}, "data")
    assert data.replace(**fitting_shape(net, data)).build().input_shape == (channels, side, side)
    free = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # any size: as the images are
    assert fitting_shape(free, data) == {}
    assert fitting_shape(net, data.replace(size=16, channels=3)) == {}  # the user's own


def brightness(shift: int, classes: int = 4, outputs: int = 4) -> tuple[Tensor, Tensor]:
    """Scores of a network whose output is right, but for its number, on four images of five, and labels of the data."""
    labels = torch.arange(60) % classes
    guess = torch.where(torch.arange(60) % 5 == 4, (labels + 1 + torch.arange(60)) % classes, labels)
    return nn.functional.one_hot((guess + shift) % outputs, outputs).float(), labels


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_classes_in_another_order_are_told_and_the_right_order_is_not(shift: int) -> None:
    names = ["bird", "car", "cat", "deer"]
    text = better_order(*brightness(shift), names)
    if shift:
        order = [names[(output - shift) % 4] for output in range(4)]
        assert "the classes in the order " + ", ".join(f"{i} = {name}" for i, name in enumerate(order)) in text
    else:
        assert text == ""
    torch.manual_seed(shift)
    assert better_order(torch.rand(256, 10), torch.randint(10, (256,)), [str(i) for i in range(10)]) == ""  # chance is no order


def test_a_network_that_predicts_one_class_is_in_no_order() -> None:
    labels = torch.cat([torch.zeros(150), torch.ones(50)]).long()  # 75 % would be "correct" in the other order
    assert better_order(nn.functional.one_hot(torch.ones(200).long(), 2).float(), labels, ["cat", "dog"]) == ""
    assert "100 % correct" in better_order(nn.functional.one_hot(1 - labels, 2).float(), labels, ["cat", "dog"])


def test_a_convert_with_renamed_classes_warns_with_the_order() -> None:
    class Turned(Centred):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).roll(1, 1)

    _, text = chosen_normalisation(Turned(0.0, 1.0), check_component(LabelledData, {"use": f"{__name__}.Brightness"}, "data"), {})
    assert "WARNING: the classes in the order 0 = 3, 1 = 0, 2 = 1, 3 = 2 would make 100 % correct" in text


def test_the_output_that_no_class_fits_is_named() -> None:
    names = ["airplane", "bird", "cat"]
    labels = torch.arange(30) % 3
    scores = nn.functional.one_hot(torch.tensor([0, 2, 3])[labels], 4).float()
    assert missing_classes(scores, labels, names) == (
        100.0, "no class fits output 1 (after 'airplane' and before 'bird'), if the others are in order (100 % correct then)"
    )  # fmt: skip
    assert missing_classes(torch.zeros(30, 4), labels, names)[1] == ""  # it predicts one class


def test_the_order_of_outputs_is_the_best_of_all() -> None:
    rng = torch.Generator().manual_seed(0)
    for classes, outputs in ((1, 4), (2, 2), (3, 5), (4, 7)):
        for _ in range(20):
            labels, scores = torch.randint(classes, (12,), generator=rng), torch.rand(12, outputs, generator=rng)
            taken = torch.tensor(list(itertools.combinations(range(outputs), classes)))  # in lexicographic order
            correct = (taken[:, labels] == scores.argmax(1)).sum(1)
            best = taken[int(correct.eq(correct.max()).nonzero()[-1])]
            found, text = missing_classes(scores, labels, [f"class {n}" for n in range(classes)])
            assert found == pytest.approx(100 * float(correct.max()) / 12)
            assert all(f"{n} (" in text for n in {*range(outputs)} - {*best.tolist()}) or not text


def test_many_outputs_that_no_class_fits_are_found_in_the_size_of_their_table() -> None:
    """Twice as many of both had taken about 14 times as long: minutes of this."""
    classes, outputs = 300, 600
    labels, names = torch.arange(900) % classes, [str(n) for n in range(classes)]
    started = time.monotonic()
    correct, text = missing_classes(nn.functional.one_hot(2 * labels + 1, outputs).float(), labels, names)
    assert time.monotonic() - started < 5
    assert correct == 100
    assert text.startswith("no class fits outputs 0 (before '0'), 2 (after '0' and before '1'), 4 (after '1' and before '2')")


class Five(nn.Module):
    """Right with five outputs, of which the second is none of the data's; surer, and wrong, of images of another scale."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Centred(0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        return torch.cat([found[:, :1], torch.full_like(found[:, :1], -30.0), found[:, 1:]], 1)


def test_the_missing_class_is_found_with_the_normalisation_that_fits() -> None:
    data = check_component(LabelledData, {"use": f"{__name__}.Brightness"}, "data")
    assert unfitting_classes(Five(), data, 5).startswith("no class fits output 1 (after '0' and before '1'), ")


def test_of_equal_normalisations_the_common_one_is_taken() -> None:
    losses = {NONE: torch.tensor([0.5, 0.7, 0.6]), "a half": torch.tensor([2.0, 2.1, 2.2]), OWN: torch.tensor([0.6, 0.5, 0.6])}
    fits = {name: _Fit(torch.zeros(3, 2), loss, 50.0) for name, loss in losses.items()}
    assert _best(fits) == NONE
    fits[OWN] = _Fit(torch.zeros(3, 2), losses[NONE] - 0.3, 50.0)
    assert _best(fits) == OWN


def test_images_that_the_data_normalise_themselves_are_not_called_pixels() -> None:
    assert _called(NONE, torch.tensor([0.0, 1.0])) == NONE
    assert _called(NONE, torch.tensor([-2.0, 2.5])) == "none; the data give numbers from -2 to 2.5"


def test_a_network_at_chance_is_told() -> None:
    last = nn.Linear(64, 10)
    nn.init.zeros_(last.weight)
    net = nn.Sequential(nn.Flatten(), last)
    _, text = chosen_normalisation(net, check_component(LabelledData, "Digits", "data"), {})
    assert "WARNING: near chance" in text


def test_weights_of_libraries_say_their_normalisation() -> None:
    found = known_transform({"use": "TorchvisionModel", "name": "resnet18", "weights": "DEFAULT"})
    cut = [{"use": "Resize", "size": [256]}, {"use": "CenterCrop", "size": [224]}]
    assert found == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 224, "transforms": cut}
    assert known_transform({"use": "TorchvisionModel", "name": "resnet18", "weights": "mine.pth"}) is None
    assert known_transform({"use": "/a/mynet.py:MyNet", "weights": "best.pt"}) is None


def test_images_of_timm_are_cut_as_its_configuration_says() -> None:
    cut = _timm_cut({"crop_pct": 0.95, "crop_mode": "center", "interpolation": "bicubic"}, 224)
    resize = {"use": "Resize", "size": [235], "interpolation": 3}
    assert cut == {"transforms": [resize, {"use": "CenterCrop", "size": [224, 224]}]}
    squashed = _timm_cut({"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}, 64)
    assert squashed == {"transforms": [{"use": "Resize", "size": [64, 64]}, {"use": "CenterCrop", "size": [64, 64]}]}
    with pytest.warns(UserWarning, match=r"crop_mode='border'.*give data\.transforms"):
        assert _timm_cut({"crop_mode": "border", "interpolation": "bicubic"}, 64) == {}


# stumbles of a new user: each is met at the front door, with what to do ---------------------------------------------------------


@pytest.fixture
def photos(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with mynet.py, best.pt and a folder of photographs of two classes."""
    monkeypatch.chdir(tmp_path)
    _forget_imports(home / "runs" / "mine", monkeypatch)
    for name in ("mynet.py", "best.pt"):
        shutil.copyfile(home / name, tmp_path / name)
    (tmp_path / "mynet.onnx").touch()
    for number in range(12):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * number).save(file)
    return tmp_path


PHOTOS = ("mynet.py:MyNet", "--weights", "best.pt", "ann.width=8", "--data", "ImageFolder", "--root", "photos")
SHORT = ("--samples", 0, "--timesteps", 2, "--out", "runs/mine")


def test_a_broken_image_is_found_before_anything_is_begun_and_skipped_with_one_warning(photos: Path) -> None:
    (photos / "photos" / "a" / "99.jpg").write_bytes(b"\xff\xd8\xff no picture")
    found = spikeprop("convert", *PHOTOS, *SHORT)
    assert found.exit_code == 1
    assert "1 file cannot be read; add data.on_error=skip to leave them out:" in found.output
    assert not (photos / "runs").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        skipped = spikeprop("convert", *PHOTOS, "data.on_error=skip", *SHORT)
    assert "10 outputs, but data: ImageFolder has 2 classes" in skipped.output  # so the data were built, and built again
    assert skipped.output.count("images cannot be read and are left out") == 1


def test_an_out_folder_that_cannot_be_used_is_found_before_any_data(photos: Path) -> None:
    shutil.rmtree(photos / "photos")
    (photos / "photos").mkdir()  # empty: nobody asks for images
    (photos / "file").touch()
    found = spikeprop("convert", *PHOTOS, "--out", "file/mine")
    assert found.exit_code == 1
    assert "cannot write the folder file/mine: file is a file; use another --out folder" in found.output
    stored = {"use": "HybridConversion", "data": {"use": "Digits"}, "ann": {"use": "CIFARResNet"}, "convert": {"timesteps": 2}}
    (photos / "mine").mkdir()
    (photos / "mine" / "run.json").write_text(json.dumps({"recipe": stored}))
    found = spikeprop("convert", *PHOTOS, "--out", "mine")
    assert "mine holds a run of another recipe (it differs in " in found.output
    assert "choose another --out folder, or remove this one to begin again" in found.output
    left = sorted(p.name for p in photos.iterdir() if p.name not in ("__pycache__",))
    assert left == ["best.pt", "file", "mine", "mynet.onnx", "mynet.py", "photos"]
    assert [p.name for p in (photos / "mine").iterdir()] == ["run.json"]


@pytest.mark.usefixtures("photos")
def test_the_same_command_again_is_the_same_recipe(tmp_path: Path) -> None:
    own = OwnNetwork(source="mynet.py:MyNet", weights="best.pt", data="Digits", overrides=("ann.width=8", "convert.images=64"))
    recipe, _ = own_recipe(own, tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"recipe": recipe.describe()}))
    assert own_recipe(own, tmp_path / "mine")[0].describe() == recipe.describe()
    with pytest.raises(RecipeError, match=r"it differs in convert\.images"):
        own_recipe(dataclasses.replace(own, overrides=("ann.width=8", "convert.images=32")), tmp_path / "mine")


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "Missing argument 'SOURCE'. For example: spikeprop convert mynet.py:MyNet --weights best.pt"),
        ("mynet.py:MyNet --weights best.pt --data photos", "--data photos is a folder: give --data ImageFolder --root photos"),
        ("MyNet --weights best.pt --root photos", "mynet.py defines it: write mynet.py:MyNet"),
        (
            "mynet.py:MyNet ann.width=8 --weights best.pt --root photo",
            "set data.root (--root of convert); did you mean 'photos'?",
        ),
        ("mynet.py:MyNet ann.width=8 --weights bst.pt --root photos", "; did you mean 'best.pt'?"),
        ("mynett.py:MyNet --weights best.pt --root photos", "; did you mean 'mynet.py'?"),
        ("mynet.py:MyNet --weights best.pt --root photos data.foo=2", "ImageFolder has no 'foo'; known: channels, "),
        (
            "mynet.py:MyNet ann.width=8 --weights best.pt --root photos data.size=12 data.channels=1",
            "cannot read the images of data: ImageFolder, which are 1x12x12: ",
        ),
        (
            "mynet.py:MyNet ann.width=8 --weights best.pt --root photos",
            "has 10 outputs, but data: ImageFolder has 2 classes: no class fits outputs ",
        ),
        ("mynet.py:Block --weights best.pt --root photos", "ann.c is missing"),
        ("mynet.py:Block --weights best.pt --root photos", "; or is MyNet, which mynet.py has too, the network?"),
        ("mynet.onxx --root photos", "there is no file mynet.onxx; did you mean 'mynet.onnx'?"),
        ("torchvision:resnet18 ann.weights=null ann.classes=3 --root photos", "TorchvisionModel has 3 outputs, but data: "),
        ("mynet.py:MyNet --root photos", "warning: no --weights: the network has the values with which it starts (random"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(arguments: str, says: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = spikeprop("convert", *arguments.split())
    assert result.exit_code in (1, 2)
    assert says in result.output
    assert not Path("runs").exists()
