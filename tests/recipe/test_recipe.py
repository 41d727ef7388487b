"""Recipes: every one is checked, every mistake is named by its path with the nearest name."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from spikeprop import plugins
from spikeprop.errors import ConversionError, RecipeError, SegmentError
from spikeprop.experiment.pipeline import HybridConversion
from spikeprop.experiment.scratch import SpikingTraining
from spikeprop.learn import LearningRule
from spikeprop.recipe import Recipe, check, components, dump, home, load_recipe, recipe_folder, slots
from spikeprop.recipe.names import fits
from spikeprop.runtime.devices import find_device

RECIPES = sorted(recipe_folder().glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_every_recipe_is_checked_complete_and_opens_with_its_command(file: Path) -> None:
    recipe = load_recipe(str(file))
    assert file.read_text().splitlines()[0] == f"# spikeprop run {file.stem}"
    described = recipe.describe()
    again = check(yaml.safe_load(dump(described)))
    assert load_recipe(file.stem).describe() == described
    assert described == Recipe("again", again).describe()


def test_the_recipe_of_a_run_folder_has_the_same_learning_rate() -> None:
    described = load_recipe("digits_cnn_stdb", ["train.lr=0.5", "train.weight_decay=0.25"]).describe()
    assert described["train"]["optimizer"]["lr"] == 0.001  # the optimiser's own default, which is not used
    (group,) = check(described).train.build_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize(("name", "stage"), [("digits_cnn_stdb", "finetune"), ("digits_snn_direct", "train")])
def test_the_recipe_of_a_run_folder_trains_as_many_steps(name: str, stage: str) -> None:
    recipe = load_recipe(name)
    again = check(yaml.safe_load(dump(recipe.describe())))  # writes out the rule's timesteps, which are not given, as null
    first, second = (getattr(experiment, stage).build_rule().timesteps for experiment in (recipe.experiment, again))
    assert first == second == getattr(recipe.experiment, stage).timesteps is not None


def test_the_papers_table_is_there() -> None:
    rows = {f"cifar10_{n}" for n in ("vgg5", "vgg9", "vgg16", "resnet8", "resnet20")}
    rows |= {"cifar100_vgg11", "imagenet_vgg16", "imagenet_resnet34", "digits_mlp", "digits_cnn", "fashion_mnist_cnn"}
    others = {f"{ann}_{method}" for ann in ("fashion_mnist_cnn", "cifar10_vgg16") for method in ("qcfs", "diet")}
    others |= {
        f"cifar10_fast_{method}" for method in ("stdb", "qcfs", "diet", "graded", "graded_stdb", "signed", "signed_stdb", "ar")
    }
    others |= {
        "cifar10_resnet20_light",
        "cifar10_resnet20_signed",
        "cifar10_vit",
        "digits_graded",
        "digits_snn_direct",
        "fashion_mnist_snn_direct",
        "nmnist_cnn",
        "dvs_gesture_cnn",
        "shd_rsnn",
        "digits_on_photographs_unet",
        "digits_cnn_ar",
        "digits_mlp_ar",
        "mnist_mlp_ar",
        "mnist_cnn_rifle",
        "cifar10_fast_ar",
        "cifar10_fast_rifle",
        "python_transformer_parallel",
        "cifar10_cnn_ar",
        "cifar10_resnet32_interlocking",
        "python_transformer_interlocking",
        "qr_least_squares",
        "ldbp_single",
        "ldbp_pmd",
        "ldbp_drift",
        "ldbp_phase_noise",
        "ldbp_wdm",
        "rules_compared",
        "digits_snn_eprop",
        "aad_barrier",
        "aad_differential",
    }
    others |= {f"digits_cnn_{rule}" for rule in ("pc", "ep", "fa", "dfa", "dtp", "ff")}
    others |= {
        f"map_{task}"
        for task in (
            "acrobot",
            "cartpole",
            "lunar_lander",
            "mountain_car",
            "multiplexer",
            "regression",
            "acrobot_tuned",
            "cartpole_vector",
        )
    }
    assert {f"{row}_stdb" for row in rows} | others == {f.stem for f in RECIPES}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("finetune.lr=fast", r"finetune\.lr: 'fast' is not valid"),
        ("finetune.lr=-1", r"finetune: lr is -1"),
        ("finetune.optimizer={use: Adam, lr: 1}", r"finetune: optimizer has lr; write it beside the optimizer"),
        ("train.optimizer={use: SGD, lr: 1, weight_decay: 0.1}", r"train: optimizer has lr and weight_decay"),
        ("finetune.epochs=2.5", r"finetune\.epochs: 2\.5"),
        ("finetune.epoch=2", r"finetune\.epoch: FineTuningSettings has no 'epoch'; did you mean 'epochs'"),
        ("finetun.epochs=2", r"no 'finetun'; did you mean 'finetune'"),
        ("sed=2", r"sed: HybridConversion has no 'sed'; did you mean 'seed'"),
        ("data=Digit", r"data: no component 'Digit' in spikeprop\.data; did you mean 'Digits'"),
        ("convert.neuron.lek=0.9", r"convert\.neuron\.lek: IF has no 'lek'"),
        ("convert.neuron.surrogate.alhpa=1", r"convert\.neuron\.surrogate\.alhpa: STDB has no 'alhpa'; did you mean 'alpha'"),
        ("convert.neuron=Poisson", r"convert\.neuron: no component 'Poisson'"),
        ("convert.neuron.reset=soft", r"convert\.neuron\.reset: 'soft' is not valid"),
        ("ann.plan=[4, B]", r"ann\.plan"),
        ("train.optimizer=Adamm", r"train\.optimizer: no component 'Adamm' in torch\.optim; did you mean 'Adam'"),
        ("train.optimizer.momentun=0.9", r"did you mean 'momentum'"),
        ("train.optimizer.params=[1]", r"train\.optimizer\.params"),
        ("finetune.timesteps=0", r"finetune: timesteps is 0; it must be positive"),
        ("evaluate.timesteps=[4, 0]", "at least 1"),
        ("use=HybridConversio", r"did you mean 'HybridConversion'"),
        ("data=nowhere.Set", r"cannot import 'nowhere'"),
        ("train.rule=spikeprop.plugins.FeedbackAlignement", r"in spikeprop\.plugins; did you mean 'FeedbackAlignment'"),
        ("train.rule=spikeprop.learn.Backprob", r"in spikeprop\.learn; did you mean 'Backprop'"),
        ("data=torch.utils.Set", r"no component 'Set' in torch\.utils(; known: \w.*)?$"),
        ("seed", "path.to.key=value"),
        ("seed.x=1", "seed is 0, which has no keys"),
        ("seed=[1", "not YAML"),
    ],
)
def test_mistakes_are_named(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("digits_cnn_stdb", [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("convert.neuron.v_threshold=0", r"convert\.neuron: IF: v_threshold is 0"),
        ("convert.neuron.surrogate.alpha=0", r"convert\.neuron\.surrogate: STDB: alpha is 0"),
        ("convert.neuron.surrogate={use: Triangle, height: -1}", r"Triangle: height is -1"),
        ("convert.calibrator.scale=-1", r"convert\.calibrator: ThresholdBalancing: scale is -1"),
        ("convert.calibrator.timesteps=0", r"ThresholdBalancing: timesteps is 0"),
        ("convert.calibrator={use: Percentile, percentile: 101}", r"convert\.calibrator: Percentile: percentile is 101"),
        ("finetune.rule.timesteps=0", r"finetune\.rule: BPTT: timesteps is 0"),
        ("finetune.rule.chunk=0", r"finetune\.rule: BPTT: chunk is 0"),
        ("finetune.schedule={use: Cosine, warmup: 1.0}", r"finetune\.schedule: Cosine: warmup is 1"),
        ("train.rule.label_smoothing=2", r"train\.rule: Backprop: label_smoothing is 2"),
        ("train.optimizer={use: SGD, momentum: -1.0}", r"train\.optimizer: SGD: Invalid momentum"),
        ("train.clip=0.0", r"train: clip is 0"),
        ("data.test_limit=-3", r"data: Digits: test_limit is -3"),
        ("data.std=0.0", r"data: Digits: std is 0"),
        ("device=tpu", r"device is 'tpu'"),
        ("precision=half", r"precision: 'half'"),
        ("ann.classes=5", r"ann: CNN has 5 outputs, but data: Digits has 10 classes; set ann\.classes=10"),
        ("ann.input_shape=[1, 16, 16]", r"ann: CNN cannot read the images of data: Digits, which are 1x8x8"),
        ("ann={use: TorchvisionModel, name: resnet18, weights: FOO}", r"no weights 'FOO'; known: IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_values_that_cannot_work_are_found_by_check(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("digits_cnn_stdb", [override]).experiment.check()


def test_check_needs_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKEPROP_DATA", raising=False)
    load_recipe("imagenet_resnet34_stdb").experiment.check()
    load_recipe("imagenet_resnet34_stdb", ["ann={use: TorchvisionModel, name: squeezenet1_0}"]).experiment.check()
    load_recipe("imagenet_resnet34_stdb", ["ann={use: TorchvisionModel, name: shufflenet_v2_x0_5}"]).experiment.check()


def test_check_refuses_what_the_run_would_refuse_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_odd_nets.py").write_text(
        "import warnings\nfrom torch import nn\nfrom torch.nn.utils import prune, spectral_norm, weight_norm\n"
        "class Net(nn.Sequential):\n    def __init__(self, *, classes: int, what: str):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))\n"
        "        with warnings.catch_warnings():\n            warnings.simplefilter('ignore')\n"
        "            {'weight': weight_norm, 'spectral': spectral_norm}.get(what, lambda module: None)(self[1])\n"
        "        if what == 'pruned':\n            prune.l1_unstructured(self[1], 'weight', amount=0.3)\n"
        "        if what == 'hook':\n            self[3].register_forward_hook(lambda module, args, output: output * 2)\n"
        "        if what == 'patched':\n            before = self[2].forward\n"
        "            self[2].forward = lambda z: before(z) - 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for what in ("nothing", "weight", "spectral", "pruned"):
        load_recipe("digits_cnn_stdb", [f"ann={{use: my_odd_nets.Net, classes: 10, what: {what}}}"]).experiment.check()
    for what, says in (("hook", "output of '3'.*hooks of '3'"), ("patched", "a forward of '2' that was replaced")):
        recipe = load_recipe("digits_cnn_stdb", [f"ann={{use: my_odd_nets.Net, classes: 10, what: {what}}}"])
        with pytest.raises(ConversionError, match=says):
            recipe.experiment.check()


def test_an_ann_that_cannot_do_without_numbers_is_checked_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Scaled(nn.Sequential):\n    def __init__(self, *, classes: int):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, classes))\n"
        "        self.scale = float(self[1].weight.abs().max())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    load_recipe("digits_cnn_stdb", ["ann={use: my_nets.Scaled, classes: 10}"]).experiment.check()
    with pytest.raises(RecipeError, match=r"has 9 outputs.*set ann\.classes=10"):
        load_recipe("digits_cnn_stdb", ["ann={use: my_nets.Scaled, classes: 9}"]).experiment.check()


def test_devices_that_are_not_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError, match="torch finds 0 CUDA devices"):
        find_device("cuda:1")
    load_recipe("digits_cnn_stdb", ["precision=bfloat16"]).experiment.check(here=True)
    lowered = load_recipe("digits_cnn_stdb", ["precision=float16"]).experiment
    lowered.check()  # the recipe is sound
    with pytest.raises(RecipeError, match="precision: float16 is for CUDA"):
        lowered.check(here=True)


def test_missing_keys_are_named() -> None:
    tree = load_recipe("digits_cnn_stdb").describe()
    del tree["finetune"]["timesteps"]
    with pytest.raises(RecipeError, match=r"finetune\.timesteps is missing"):
        check(tree)
    del tree["data"]
    with pytest.raises(RecipeError, match=r"data is missing: a component, one of CIFAR10.*Digits"):
        check(tree)
    with pytest.raises(RecipeError, match=r"ann\.classes is missing"):
        check({**tree, "data": "Digits", "ann": {"use": "MLP", "input_shape": [1, 8, 8], "hidden": [4]}})


def test_overrides_reach_nested_components_and_numbers_like_1e_3_are_numbers() -> None:
    overrides = ["finetune.lr=1e-3", "convert.neuron.surrogate=Triangle", "data.root=/data", "train.schedule.warmup=0.1"]
    experiment = load_recipe("digits_cnn_stdb", overrides).experiment
    assert experiment.finetune.lr == 0.001
    assert experiment.train.weight_decay == 5e-4
    assert type(experiment.convert.neuron.build().surrogate).__name__ == "Triangle"
    assert experiment.data.build().root == "/data"
    assert experiment.train.schedule.build().warmup == 0.1  # the recipe names it bare


def test_an_unknown_recipe_has_a_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'digits_cnn_stdb'"):
        load_recipe("digit_cnn_stdb")
    with pytest.raises(RecipeError, match=r"no recipe 'nothing\.yaml'"):
        load_recipe("nothing.yaml")


def test_code_outside_the_tree_fits_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab.py").write_text(
        "from dataclasses import dataclass\nfrom spikeprop.snn import Encoder\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Half(Encoder):\n    factor: float = 0.5\n    constant = True\n"
        "    def __call__(self, x_TB, first, last):\n        return x_TB[first:last] * self.factor\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe("digits_cnn_stdb", ["convert.encoder={use: my_lab.Half, factor: 0.25}"])
    assert recipe.experiment.convert.encoder.build().factor == 0.25
    with pytest.raises(RecipeError, match="no component 'Quarter' in my_lab"):
        load_recipe("digits_cnn_stdb", ["convert.encoder=my_lab.Quarter"])


def test_check_finds_a_callback_that_does_not_fit_the_network() -> None:
    rifle = "train.callbacks=[{use: spikeprop.plugins.RIFLE, head: nowhere}]"
    with pytest.raises(ValueError, match="head is 'nowhere', but the network has no such module"):
        load_recipe("digits_cnn_stdb", [rifle]).experiment.check()
    load_recipe("digits_cnn_stdb", [rifle.replace("nowhere", "null")]).experiment.check()


def test_callbacks_are_a_list_of_components() -> None:
    override = "train.callbacks=[{use: spikeprop.learn.CollapseGuard, classes: 10}]"
    recipe = load_recipe("digits_cnn_stdb", [override])
    assert [c.build().chance for c in recipe.experiment.train.callbacks] == [10]
    assert check(yaml.safe_load(dump(recipe.describe()))).train.callbacks[0].arguments == {"classes": 10, "least": 500}
    with pytest.raises(RecipeError, match=r"train\.callbacks\.0: no component 'Guard'"):
        load_recipe("digits_cnn_stdb", ["train.callbacks=[Guard]"])
    with pytest.raises(RecipeError, match=r"train\.callbacks: expected a list of components"):
        load_recipe("digits_cnn_stdb", ["train.callbacks=CollapseGuard"])


def test_a_rule_that_cannot_train_the_network_says_so_before_training() -> None:
    with pytest.raises(SegmentError, match="at most 4 segments, not 9"):
        load_recipe("digits_cnn_ar", ["train.rule={use: spikeprop.plugins.Interlocking, cuts: 9}"]).experiment.check()
    with pytest.raises(RecipeError, match=r"train\.rule: spikeprop\.plugins\.ActivationRelaxation: step_size is 2"):
        load_recipe("digits_cnn_ar", ["train.rule.step_size=2.0"]).experiment.check()


def test_arms_are_a_mapping_of_components() -> None:
    recipe = load_recipe("mnist_mlp_ar", ["arms.backprop.loss.use=CrossEntropy", "arms.backprop.loss.label_smoothing=0.1"])
    assert recipe.experiment.arms["backprop"].build().loss.label_smoothing == 0.1
    with pytest.raises(
        RecipeError, match=r"arms\.backprop: no component 'Backprob' in spikeprop\.learn; did you mean 'Backprop'"
    ):
        load_recipe("mnist_mlp_ar", ["arms.backprop={use: Backprob}"])
    with pytest.raises(RecipeError, match=r"arms: expected a dict of components"):
        load_recipe("mnist_mlp_ar", ["arms=[Backprop]"])
    for override, says in {
        "baseline=none": "not an arm; arms: backprop",
        "seeds=[1, 1]": "each once",
        "ann.classes=9": "9 outputs",
    }.items():
        with pytest.raises(RecipeError, match=says):
            load_recipe("mnist_mlp_ar", [override]).experiment.check()


@pytest.mark.parametrize("raised", ["RuntimeError", "AttributeError"])
def test_a_broken_plugin_is_named_and_the_others_are_listed(raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"broken_{raised}.py").write_text(f"raise {raised}('out of order')")
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__, str(tmp_path)])
    monkeypatch.setitem(plugins._MODULES, "Broken", f"broken_{raised}")
    with pytest.warns(UserWarning, match=r"Broken cannot be imported and left out \(.*out of order\)"):
        assert "spikeprop.plugins.FeedbackAlignment" in components(LearningRule)
    with pytest.warns(UserWarning, match="Broken"), pytest.raises(RecipeError, match="did you mean 'Backprop'"):
        load_recipe("digits_cnn_stdb", ["train.rule=Backprob"])
    with pytest.raises(RecipeError, match=r"cannot import 'spikeprop\.plugins' for 'spikeprop\.plugins\.Broken': .*out of order"):
        load_recipe("digits_cnn_stdb", ["train.rule=spikeprop.plugins.Broken"])


def test_what_the_rooms_have_for_a_slot_is_listed() -> None:
    """A recipe may name it with its room, so `ls`, the reference and the messages about typos must know it."""
    rooms = [importlib.import_module(f"spikeprop.{name}") for name in ("data", "snn", "convert", "learn", "evaluate", "deploy")]
    public = {f"{room.__name__}.{name}": getattr(room, name) for room in rooms for name in room.__all__}
    for base in {*slots(HybridConversion).values(), *slots(SpikingTraining).values()} - {nn.Module}:  # neurons are modules too
        known = {name if "." in name else f"{home(base)}.{name}" for name in components(base)}
        assert not {name for name, cls in public.items() if fits(cls, base)} - known, base
    for wrong in ("MuonSGD", "MuonSDG"):
        with pytest.raises(RecipeError, match=r"did you mean 'spikeprop\.learn\.MuonSGD'"):
            load_recipe("digits_cnn_stdb", [f"train.optimizer={wrong}"])


def test_every_slot_has_components() -> None:
    found = {path: components(base) for path, base in slots(HybridConversion).items()}
    assert {"ALIF", "CubaLIF", "DifferentialIF", "GradedIF", "IF", "LIF", "PLIF", "SignedIF"} == set(found["convert.neuron"])
    assert {"Delta", "Direct", "Frames", "Latency", "Poisson"} == set(found["convert.encoder"])
    assert {"MaxActivation", "Percentile", "ThresholdBalancing", "LeastError", "LightCalibration"} < set(
        found["convert.calibrator"]
    )
    nets = {name for name in found["ann"] if "." not in name}
    assert {
        "CNN",
        "MLP",
        "VGG",
        "ResNet",
        "CIFARResNet",
        "SpikingCNN",
        "SpikingMLP",
        "OnnxModel",
        "TimmModel",
        "FastCNN",
        "TorchvisionModel",
        "UNet",
        "ViT",
    } == nets
    assert {"spikeprop.plugins.BasicResNet", "spikeprop.plugins.CharTransformer"} <= set(found["ann"])
    data = {"Digits", "DigitsOnPhotographs", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "ImageNet", "WebDataset"}
    assert data | {"CSVLabels", "ImageFolder", "OwnDataset", "TensorData"} == set(found["data"])
    assert found["convert.neuron"]["LIF"]["leak"] == 0.99
