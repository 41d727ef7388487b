"""``extends``: settings over those of another recipe, complete once checked; mistakes name the file that holds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from spikeprop.errors import RecipeError
from spikeprop.recipe import dump, load_recipe
from spikeprop.recipe.extending import DEEPEST, laid_over

BASE = """
data: Digits
ann: {use: CNN, input_shape: [1, 8, 8], classes: 10, plan: [8, A], hidden: [16]}
train: {rule: Backprop, optimizer: {use: SGD, momentum: 0.9}, schedule: Cosine, epochs: 3}
convert: {timesteps: 4, images: 64}
"""


def written(folder: Path, **recipes: str) -> Path:
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{[*recipes][-1]}.yaml"


def test_settings_are_laid_over_and_the_recipe_is_complete(tmp_path: Path) -> None:
    own = "extends: base\ntrain: {epochs: 5, optimizer: {nesterov: true}, rule: {label_smoothing: 0.1}}\nann: {plan: [4]}\n"
    recipe = load_recipe(str(written(tmp_path, base=BASE, own=own)))
    described = recipe.describe()
    by_hand = yaml.safe_load(BASE)
    by_hand["train"] |= {"epochs": 5, "rule": {"use": "Backprop", "label_smoothing": 0.1}}
    by_hand["train"]["optimizer"]["nesterov"] = True
    by_hand["ann"]["plan"] = [4]
    assert described == load_recipe(str(written(tmp_path, complete=dump(by_hand)))).describe()
    assert recipe.name == "own"
    assert "extends" not in described


def test_another_component_takes_nothing_of_the_one_before() -> None:
    below = {"optimizer": {"use": "SGD", "momentum": 0.9}, "list": [1, 2], "neuron": "IF", "kept": {"a": 1}}
    above = {"optimizer": {"use": "Adam"}, "list": [3], "neuron": {"v_init": 0.5}, "kept": {"a": None}}
    assert laid_over(below, above) == {
        "optimizer": {"use": "Adam"},
        "list": [3],
        "neuron": {"use": "IF", "v_init": 0.5},
        "kept": {"a": None},
    }
    assert laid_over(below, {"optimizer": "Adam"})["optimizer"] == "Adam"
    assert below["list"] == [1, 2]


def test_mistakes_name_their_file(tmp_path: Path) -> None:
    wrong = BASE.replace("epochs: 3", "epochs: three").replace("images: 64", "images: 0")
    with pytest.raises(RecipeError) as found:
        load_recipe(str(written(tmp_path, base=wrong, own="extends: base\nconvert: {timestep: 3}\n")))
    lines = str(found.value).splitlines()
    assert any("train.epochs: 'three'" in line and line.endswith(f"(in {tmp_path / 'base.yaml'})") for line in lines)
    assert any("convert.timestep:" in line and "base.yaml" not in line for line in lines)


def test_what_a_component_lacks_is_not_looked_for_in_the_one_that_it_replaced(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        load_recipe(str(written(tmp_path, base=BASE, own="extends: base\nann: {use: MLP, classes: 10}\n")))
    assert "ann.hidden is missing" in str(found.value)
    assert "base.yaml" not in str(found.value)


def test_what_cannot_be_extended_is_refused(tmp_path: Path) -> None:
    for text, says in (
        ("extends: nothing_like_it", r"own\.yaml: extends: no recipe 'nothing_like_it'"),
        ("extends: [base]", r"own\.yaml: extends is \['base'\]"),
        ("extends: own", "cannot extend itself: own.yaml extends own.yaml"),
    ):
        with pytest.raises(RecipeError, match=says):
            load_recipe(str(written(tmp_path, own=text)))
    with pytest.raises(RecipeError, match=r"a\.yaml extends b\.yaml extends a\.yaml"):
        load_recipe(str(written(tmp_path, b="extends: a", a="extends: b")))
    chain = {f"r{i}": f"extends: r{i + 1}" for i in range(DEEPEST + 1)} | {"r0": "extends: r1"}
    written(tmp_path, **chain)
    with pytest.raises(RecipeError, match=f"more than {DEEPEST} recipes"):
        load_recipe(str(tmp_path / "r0.yaml"))


def test_recipes_of_the_package_can_be_extended_from_anywhere(tmp_path: Path) -> None:
    own = load_recipe(str(written(tmp_path, own="extends: digits_cnn_stdb\nseed: 7\n")), ["finetune.epochs=1"]).describe()
    wanted = load_recipe("digits_cnn_stdb", ["seed=7", "finetune.epochs=1"]).describe()
    assert own == wanted


def test_recipes_of_one_ann_share_its_training() -> None:
    described = {name: load_recipe(f"cifar10_fast_{name}").describe() for name in ("graded", "signed", "stdb", "diet", "qcfs")}
    for name in ("signed", "stdb", "diet"):
        assert all(described[name][key] == described["graded"][key] for key in ("seed", "precision", "data", "ann", "train"))
