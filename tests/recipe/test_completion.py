"""Recipes that leave sections out: what then holds is complete, reproducible, and stands in the report; all mistakes at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

import spikeprop as sp
from spikeprop.cli import main
from spikeprop.errors import RecipeError
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.experiment.stages import HYBRID, PipelineRun, run_stages
from spikeprop.recipe import Recipe, check, dump, load_recipe

SHORT: dict[str, Any] = {
    "data": {"use": "Digits", "train_limit": 128, "test_limit": 64},
    "ann": {"use": "MLP", "input_shape": [1, 8, 8], "hidden": [16], "classes": 10, "dropout": 0.0},
    "train": {"epochs": 0},
    "convert": {"timesteps": 4, "images": 64},
    "evaluate": {"timesteps": [2, 4]},
}


def recipe_file(folder: Path, **changes: Any) -> str:
    tree = {key: value for key, value in {**SHORT, **changes}.items() if value is not None}
    (folder / "short.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "short.yaml")


def messages(*arguments: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(*arguments).experiment.check()
    return list(caught.value.problems)


def test_a_short_recipe_runs_and_its_stored_recipe_gives_the_same_network(tmp_path: Path) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    shown = CliRunner().invoke(main, ["run", recipe_file(tmp_path), "--out", str(folder)])
    assert shown.exit_code == 0, shown.output
    assert "chosen for T = 4: GradedIF with 3 levels" in shown.output
    assert "calibrated for T = 4" in next(line for line in shown.output.splitlines() if "converted, T = 2" in line)
    assert "calibrated for" not in next(line for line in shown.output.splitlines() if "converted, T = 4" in line)
    report = json.loads((folder / "report.json").read_text())
    chosen = report["conversion"]
    assert (chosen["calibrated_for"], chosen["neuron"]["use"], chosen["neuron"]["levels"]) == (4, "GradedIF", 3)
    assert chosen["calibrator"]["use"] == "LightCalibration"
    assert chosen["why"].startswith("chosen for T = 4")
    assert report["timesteps"] == 4
    assert report["finetuned_epochs"] == 0
    assert "finetuned" not in report  # nothing is called what it is not
    assert "finetune" not in report["seconds"]
    assert {file.stem for file in folder.glob("*.safetensors")} == {"ann", "converted"}
    why, made = sp.load(folder).notes
    assert why == chosen["why"]
    assert made.startswith("calibrated for T = 4, data = Digits, mean = 0.0, std = 1.0")
    assert report["simulate"] == {"samples": 0}
    assert str(folder / "converted.safetensors") in CliRunner().invoke(main, ["eval", str(folder), "--limit", "4"]).output
    measured = CliRunner().invoke(main, ["eval", str(folder), "--timesteps", "2,4"]).output
    assert [line.endswith(", calibrated for T = 4") for line in measured.splitlines() if "T = " in line] == [True, False]
    stored = load_recipe(str(folder / "recipe.yaml"))
    assert stored.describe()["convert"]["timesteps"] == 4
    run = PipelineRun(stored.experiment, Context(RunFolder(again, stored), "again", print, tensorboard=False))
    run_stages(run, HYBRID[:3])
    first, second = (load_file(path / "converted.safetensors") for path in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("steps", "binary"), [(1, False), (4, False), (8, True), (32, False)])
def test_a_recipe_chooses_as_convert_does(tmp_path: Path, steps: int, binary: bool) -> None:
    convert = load_recipe(recipe_file(tmp_path, convert={"timesteps": steps, "binary": binary})).experiment.convert
    ann, images = sp.MLP(input_shape=(1, 8, 8), hidden=[4], classes=10).eval(), torch.rand(8, 1, 8, 8)
    (note,) = [n for n in sp.convert(ann, images, timesteps=steps, binary=binary).notes if n.startswith("chosen for T")]
    assert convert.describe_choice()["why"] == note


def test_what_is_chosen_is_stored_and_found_again(tmp_path: Path) -> None:
    for convert in ({"timesteps": 8}, {"timesteps": 8, "binary": True}, {"timesteps": 8, "neuron": "IF"},
                    {"calibrator": {"use": "LeastError", "timesteps": 8}}):  # fmt: skip
        recipe = load_recipe(recipe_file(tmp_path, convert=convert))
        again = Recipe("short", check(yaml.safe_load(dump(recipe.describe()))))
        assert again.describe() == recipe.describe()
        assert again.experiment.convert.describe_choice() == recipe.experiment.convert.describe_choice()
        assert recipe.experiment.convert.describe_choice()["why"]
        assert recipe.experiment.finetune.timesteps == 8
    own = load_recipe(recipe_file(tmp_path), ["convert.neuron=IF", "convert.calibrator=MaxActivation"]).experiment.convert
    assert own.describe_choice() | {"neuron": 0, "calibrator": 0} == {
        "calibrated_for": None, "neuron": 0, "calibrator": 0, "why": "",
    }  # fmt: skip


def test_the_number_of_steps_is_taken_from_where_it_is_said(tmp_path: Path) -> None:
    for changes in (
        {"convert": None, "evaluate": {"timesteps": [8]}},
        {"convert": {}, "finetune": {"epochs": 0, "timesteps": 8}},
        {"convert": {"timesteps": 8, "neuron": "IF", "calibrator": "LightCalibration"}, "evaluate": None},
    ):
        experiment = load_recipe(recipe_file(tmp_path, **changes)).experiment
        assert experiment.finetune.timesteps == experiment.convert.calibrator.build().timesteps == 8
        assert experiment.evaluate.timesteps == ([2, 4] if changes.get("evaluate", changes) is changes else [8])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"convert": None}, "convert.timesteps is missing: for how many time steps"),
        ({"train": None}, "train is missing, and ann names no weights"),
        ({"convert": {"timesteps": 0}}, "convert: timesteps is 0; it must be positive"),
        ({"convert": {"timesteps": 4, "calibrator": {"use": "LeastError", "timesteps": 8}}}, "LeastError calibrates for 8"),
        ({"convert": {"timesteps": 4, "binary": True, "neuron": "GradedIF"}}, "GradedIF sends more than one bit"),
        ({"convert": {"timesteps": 4, "neuron": "LFI"}}, "convert.neuron: no component 'LFI'"),
        ({"convert": 4}, "convert: expected settings"),
        ({"finetune": {"epochs": 0, "rule": "BPT"}}, "finetune.rule: no component 'BPT'"),
    ],
)
def test_what_nothing_can_stand_for_is_named_alone(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (message,) = messages(recipe_file(tmp_path, **changes))
    assert says in message


def test_a_trained_ann_needs_no_section_train(tmp_path: Path) -> None:
    ann = {"use": "CIFARResNet", "depth": 20, "weights": "some.safetensors"}
    recipe = load_recipe(recipe_file(tmp_path, train=None, ann=ann, data="CIFAR10"))
    assert recipe.experiment.train.epochs == 0


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    found = messages(
        recipe_file(tmp_path, data="Digit", ann={"use": "MLP", "hiden": [4], "input_shape": [1, 8, 8]}, simulat={}),
        ["seed", "finetune.lr=fast", "finetune.epochs=2", "convert.imags=3", "train.lr=-1"],
    )
    for says in ("override 'seed'", "did you mean 'Digits'", "did you mean 'hidden'", "ann.classes is missing", "simulat: ",
                 "finetune.rule is missing", "finetune.lr: 'fast'", "did you mean 'images'", "train: lr is -1"):  # fmt: skip
        assert sum(says in message for message in found) == 1, says
    values = ["train.optimizer={use: SGD, momentum: -1.0}", "convert.neuron={use: IF, v_threshold: 0}", "data.test_limit=-3"]
    found = messages("digits_cnn_stdb", values)
    assert [message.partition(":")[0] for message in found] == ["train.optimizer", "convert.neuron", "data"]
    mixed = messages("digits_cnn_stdb", [*values, "sed=1"])  # values are tried where the other sections have mistakes
    assert [message.partition(":")[0] for message in mixed] == ["sed", "train.optimizer", "convert.neuron", "data"]
    shown = CliRunner().invoke(main, ["check", "digits_cnn_stdb", *values])
    assert shown.exit_code == 1
    assert "Error: 3 mistakes:\n  train.optimizer: " in shown.output
