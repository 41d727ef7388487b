"""Data as people have them: each form is read, with class names, or refused with the remedy; files beside a recipe are found."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

from spikeprop.ann.weights import load_weights
from spikeprop.cli import main
from spikeprop.data import MNIST, ImageData, ImageFolder
from spikeprop.errors import DataError, MissingDataError, RecipeError, SpikepropError
from spikeprop.experiment.network_checkpoint import data_component, data_settings, reading
from spikeprop.recipe import check_component, load_recipe, recipe_folder
from spikeprop.runtime.imports import only_trusted

MODULE = """
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from own25_helper import CLASSES

class Mine(Dataset):
    classes = CLASSES
    def __init__(self, count, train: bool = True):
        self.count = count if train else 6
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        return np.full((8, 8, 3), 80 * (i % 3), np.uint8), i % 3

def make(split="train", count: int = 12):
    return DataLoader(TensorDataset(torch.rand(count, 1, 8, 8), torch.arange(count) % 2), batch_size=4)

loader, other = make(), make(count=6)

class Dictionaries(Dataset):
    def __init__(self, root):
        self.root = root
    def __len__(self):
        return 10
    def __getitem__(self, i):
        return {"image": torch.rand(1, 8, 8), "label": torch.tensor(i % 2)}

class Noisy(Mine):
    def __getitem__(self, i):
        return np.random.rand(8, 8) + torch.rand(1).item(), i % 3

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield 1

class Cats(Mine):
    def __init__(self, count, train: bool = True):
        super().__init__(count, train)
        self.classes = CLASSES if train else CLASSES[::-1]

class FromOne(Mine):
    def __getitem__(self, i):
        return super().__getitem__(i)[0], 1 + i % 3

class Odd(Mine):
    def __getitem__(self, i):
        return 1, 2, 3
"""
NET = """
import torch
from torch import nn
from own25_helper import CLASSES

class Net(nn.Module):
    def __init__(self, width: int = 4, classes: int = 2):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width * 36, classes)
    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.ones(1, 1, 4))
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.token + torch.zeros_like(x[:, :1]), x], 1)
        return self.head(x.mean(1))

class Odd(Net):
    def __init__(self, act: str = "relu"):
        super().__init__()
        self.act = {"relu": nn.ReLU}[act]()

def build(width: int = 4):
    return Net(width)

net = Net()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, tables, arrays and modules."""
    folder = tmp_path_factory.mktemp("own")
    draws = np.random.default_rng(0)
    rows = ["file,kind,part"]
    for number, name in enumerate(("cat", "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(6):
            file = folder / "photos" / name / f"{i}.{'png' if i % 2 else 'jpg'}"
            shape = (10 + i, 12, 3) if i % 2 else (9, 14)
            Image.fromarray(draws.integers(0, 255, shape, dtype=np.uint8)).save(file)
            rows.append(f"{file.relative_to(folder)},{number},{'val' if i > 3 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    x, y = draws.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 4
    images, labels = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y)
    np.savez(folder / "own.npz", images=x, labels=y, names=np.array(["a", "b"]))
    np.savez_compressed(folder / "keras.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    np.save(folder / "x.npy", images.numpy() / 255)
    np.save(folder / "y.npy", y)
    torch.save((images, labels), folder / "pair.pt")
    torch.save({"images": images, "labels": labels}, folder / "table.pt")
    torch.save(TensorDataset(images, labels), folder / "dataset.pt")
    save_file({"x": images, "y": labels}, folder / "tensors.safetensors")
    np.savez(
        folder / "fine.npz", x_train=x, y_train=y, y_train_coarse=y // 2, x_test=x[:5], y_test=y[:5], y_test_coarse=y[:5] // 2
    )
    np.savez(folder / "mixed.npz", x_train=x, y_train=y, x_test=x[:5] / 255, y_test=y[:5])
    np.savez(folder / "odd.npz", images=x[:, :3], labels=y)
    np.savez(folder / "soft.npz", images=x, labels=y / 2)
    (folder / "own25_data.py").write_text(MODULE)
    (folder / "own25_net.py").write_text(NET)
    (folder / "own25_helper.py").write_text('CLASSES = ["a", "b", "c"]')
    recipe = (recipe_folder() / "digits_cnn_stdb.yaml").read_text()
    (folder / "mine.yaml").write_text(recipe)
    return folder


@pytest.fixture
def there(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same as the working directory; what is imported from it is forgotten."""
    monkeypatch.chdir(made)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield made
    for name in [name for name in sys.modules if name.startswith("own25_")]:
        del sys.modules[name]


def built(**settings: Any) -> Any:
    return check_component(ImageData, settings, "data").build()


RGB, GREY = (3, 8, 8), (1, 8, 8)
READ: dict[str, tuple[dict[str, Any], tuple[int, ...], list[str], tuple[int, int]]] = {
    "folders of classes": ({"use": "ImageFolder", "root": "photos"}, (3, 11, 12), ["cat", "dog"], (8, 4)),
    "folders, in grey, of a size": (
        {"use": "ImageFolder", "root": "photos", "size": 8, "channels": 1, "crop": 1, "flip": True, "mean": [0.5]},
        GREY, ["cat", "dog"], (8, 4),
    ),
    "folders, with transforms": (
        {"use": "ImageFolder", "root": "photos", "size": [8, 10], "transforms": [{"use": "Resize", "size": [8, 10]}],
         "train_transforms": ["RandomHorizontalFlip", {"use": "ColorJitter", "brightness": 0.3}]},
        (3, 8, 10), ["cat", "dog"], (8, 4),
    ),
    "a table of labels": ({"use": "CSVLabels", "size": 8}, RGB, ["0", "1"], (8, 4)),
    "a table with a column of splits": (
        {"use": "CSVLabels", "size": 8, "label_column": "kind", "split_column": "part", "names": ["1", "0"]},
        RGB, ["1", "0"], (8, 4),
    ),
    "npz": ({"use": "TensorData", "train_file": "own.npz"}, RGB, ["0", "1", "2", "3"], (16, 4)),
    "npz of Keras": ({"use": "TensorData", "train_file": "keras.npz"}, RGB, ["0", "1", "2", "3"], (20, 5)),
    "npz with names of both parts": (
        {"use": "TensorData", "train_file": "keras.npz", "images": "x_train", "labels": "y_train"}, RGB, [*"0123"], (20, 5)
    ),
    "npz with other labels": (
        {"use": "TensorData", "train_file": "fine.npz", "labels": "y_train_coarse"}, RGB, ["0", "1"], (20, 5)
    ),
    "npz with another name of images": (
        {"use": "TensorData", "train_file": "keras.npz", "images": "x_train"}, RGB, [*"0123"], (20, 5)
    ),
    "two npy": ({"use": "TensorData", "train_file": "x.npy", "train_labels": "y.npy"}, RGB, ["0", "1", "2", "3"], (16, 4)),
    "pt of a pair": ({"use": "TensorData", "train_file": "pair.pt", "names": [*"abcd"]}, RGB, [*"abcd"], (16, 4)),
    "pt of a dictionary": ({"use": "TensorData", "train_file": "table.pt"}, RGB, ["0", "1", "2", "3"], (16, 4)),
    "pt of a TensorDataset": ({"use": "TensorData", "train_file": "dataset.pt"}, RGB, ["0", "1", "2", "3"], (16, 4)),
    "safetensors": ({"use": "TensorData", "train_file": "tensors.safetensors"}, RGB, ["0", "1", "2", "3"], (16, 4)),
    "a Dataset's class in a file": ({"use": "own25_data.py:Mine", "count": 9}, RGB, ["a", "b", "c"], (9, 6)),
    "a Dataset's class in a module": ({"use": "own25_data.Mine", "arguments": {"count": 9}}, RGB, ["a", "b", "c"], (9, 6)),
    "a function that makes DataLoaders": ({"use": "own25_data:make", "count": 8}, GREY, ["0", "1"], (8, 8)),
    "a Dataset's class with more arguments for one part": (
        {"use": "own25_data.py:Mine", "count": 9, "train_arguments": {"count": 7}}, RGB, ["a", "b", "c"], (7, 6)
    ),
    "two DataLoaders": ({"use": "own25_data.py:loader", "test_from": "other"}, GREY, ["0", "1"], (12, 6)),
    "a Dataset without splits": (
        {"use": "own25_data.py:Dictionaries", "root": ".", "holdout": 5, "class_count": 2}, GREY, ["0", "1"], (8, 2)
    ),
    "a Dataset that draws": ({"use": "own25_data.py:Noisy", "count": 9, "crop": 1}, GREY, ["a", "b", "c"], (9, 6)),
}  # fmt: skip


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("form", READ)
def test_form_is_read(form: str) -> None:
    settings, shape, names, (train, test) = READ[form]
    data = built(**settings)
    assert (data.input_shape, data.classes, data.class_names()) == (shape, len(names), names)
    x, y = next(data.train(train, seed=0).epoch(0))
    again, _ = next(data.train(train, seed=0).epoch(0))
    assert (x.shape, x.dtype, y.dtype) == ((train, *shape), torch.float32, torch.int64)
    torch.testing.assert_close(x, again, rtol=0, atol=0)
    tested = [y for _, y in data.test(3).epoch(0)]
    assert sum(map(len, tested)) == test
    assert int(torch.cat([y, *tested]).max()) < len(names)
    assert data.train(3, seed=0).fingerprint() == built(**settings).train(3, seed=0).fingerprint()
    assert data.unreadable() == []


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("form", [form for form in READ if "names" not in READ[form][0]])
def test_a_checkpoint_says_how_its_network_reads_examples(form: str) -> None:
    """The data set of a run's checkpoint, with the root of the user, has the same examples; folders are the user's to choose."""
    settings = READ[form][0]
    data = built(**settings)
    described = data_settings({"use": check_component(ImageData, settings, "data").use, **reading(data)})
    assert "root" not in described
    trusted = ("own25_data", str(Path("own25_data.py").resolve()))
    found: Any = data_component(described, trusted, root=settings.get("root")).build()
    assert (found.input_shape, found.class_names()) == (data.input_shape, data.class_names())
    assert found.test(3).fingerprint() == data.test(3).fingerprint()


PHOTOS = {"use": "ImageFolder", "root": "photos"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no root": ({"use": "ImageFolder"}, "set data.root to the folder that holds a folder of images for each class"),
    "no folder": ({"use": "ImageFolder", "root": "none"}, "there is no folder none; set data.root"),
    "images without class folders": ({"use": "ImageFolder", "root": "photos/cat"}, "it should hold CLASS/NAME with one of"),
    "unknown transform": ({**PHOTOS, "transforms": ["Resise"]}, "has no transform 'Resise'"),
    "huge transform": ({**PHOTOS, "transforms": [{"use": "Resize", "size": 10**6}]}, "has a number above 16,384"),
    "transform to another size": ({**PHOTOS, "transforms": [{"use": "Resize", "size": [4, 4]}]}, r"is \(3, 4, 4\) after its"),
    "class without a number": ({**PHOTOS, "names": ["cat"]}, "has class 'dog', which data.names lacks"),
    "three means for grey": ({**PHOTOS, "channels": 1, "mean": [0.1, 0.2, 0.3]}, "these images have 1 channels"),
    "no table": ({"use": "CSVLabels", "table": "none.csv"}, "no table none.csv; set data.table"),
    "no column": ({"use": "CSVLabels", "label_column": "knid"}, "no column 'knid'; it has file, kind, part"),
    "no file": ({"use": "TensorData"}, "there is no file train.npz; set data.train_file or data.root"),
    "no test file": (
        {"use": "TensorData", "train_file": "own.npz", "test_file": "owm.npz"}, r"owm\.npz; set data\.test_file.*mean 'own\.npz'"
    ),
    "no test labels": (
        {"use": "TensorData", "train_file": "x.npy", "train_labels": "y.npy", "test_file": "x.npy", "test_labels": "z.npy"},
        r"no file z\.npy; set data\.test_labels",
    ),
    "no test table": ({"use": "CSVLabels", "test_table": "none.csv"}, r"no table none\.csv; set data\.test_table"),
    "no labels": ({"use": "TensorData", "train_file": "x.npy"}, "data.train_labels to the file of the labels"),
    "unknown order of dimensions": ({"use": "TensorData", "train_file": "odd.npz"}, "set data.layout to NCHW or NHWC"),
    "labels with a point": ({"use": "TensorData", "train_file": "soft.npz"}, "labels are torch.float64.*give integers"),
    "no such name": ({"use": "own25_data.py:Mien"}, "no component 'Mien'.*did you mean 'Mine'"),
    "no such file": ({"use": "own26_data.py:Mine"}, "there is no file own26_data.py"),
    "a file alone": ({"use": "own25_data.py"}, r"add what to take from it: own25_data\.py:Name"),
    "no count": ({"use": "own25_data.py:Mine"}, "missing 1 required positional argument: 'count'"),
    "unknown argument": ({"use": "own25_data.py:Mine", "cuont": 3}, "has no 'cuont'; did you mean 'count'"),
    "no splits": ({"use": "own25_data.py:Dictionaries"}, r"data\.holdout=5 for every fifth"),
    "arguments for both parts alike": (
        {"use": "own25_data.py:Dictionaries", "root": ".", "train_arguments": {"root": "."}, "test_arguments": {"root": "."}},
        "for both training and testing",
    ),
    "one dataset for both": (
        {"use": "own25_data.py:loader", "test_from": "loader"}, "gives one dataset for training and testing"
    ),
    "classes in another order": ({"use": "own25_data.py:Cats", "count": 9}, "has the classes a, b, c in training and c, b, a"),
    "labels from 1 on": ({"use": "own25_data.py:FromOne", "count": 9}, "has the label 3, and there are 3 classes, from 0 on"),
    "two types of images": (
        {"use": "TensorData", "train_file": "mixed.npz"}, "training images are torch.uint8 and test images torch.float32"
    ),
    "labels without images": ({"use": "TensorData", "test_labels": "y.npy"}, "test_labels belong to the images of test_file"),
    "a stream": ({"use": "own25_data.py:Stream", "holdout": 5}, "give a map-style Dataset"),
    "other examples": ({"use": "own25_data.py:Odd", "count": 3}, r"example 1 of Odd is a tuple; give \(image, label\)"),
    "no name of a class": ({"use": "OwnDataset"}, "use: 'my_data.py:MyDataset'"),
}  # fmt: skip


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("form", REFUSED)
def test_form_is_refused_with_the_remedy(form: str) -> None:
    settings, says = REFUSED[form]
    with pytest.raises(SpikepropError, match=says):  # noqa: PT012 - it may be found by the check, or when data are read
        data = built(**settings)
        assert data.classes
        next(data.train(4, seed=0).epoch(0))
        next(data.test(4).epoch(0))


@pytest.mark.usefixtures("there")
def test_images_that_cannot_be_read_are_found_by_check_or_skipped(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "7.jpg").write_bytes(b"\xff\xd8\xff no picture")
    data = f"data={{use: ImageFolder, root: {tmp_path}, size: 8}}"
    arguments = ["check", "mine.yaml", "ann={use: own25_net.py:Net}", data]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 1
    assert "1 file cannot be read; add data.on_error=skip to leave them out:" in found.output
    assert "7.jpg is truncated or not a JPEG" in found.output
    skipped = CliRunner().invoke(main, [*arguments, "data.on_error=skip"])
    assert skipped.exit_code == 0, skipped.output
    assert "1 images that cannot be read are left out" in skipped.output
    folder = ImageFolder(root=str(tmp_path), on_error="skip")
    with pytest.warns(UserWarning, match=r"1 of 13 images cannot be read and are left out: .*7\.jpg"):
        assert len(folder.train(1, seed=0)) + len(folder.test(1)) == 12
    with pytest.raises(MissingDataError, match=r"7\.jpg is truncated"):
        list(ImageFolder(root=str(tmp_path)).train(1, seed=0).epoch(0))


def test_classes_keep_their_numbers_where_a_folder_is_empty_and_a_warning_names_it(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b", "c"):
            (tmp_path / part / name).mkdir(parents=True)
            if (part, name) != ("train", "b"):
                Image.new("L", (8, 8)).save(tmp_path / part / name / "0.png")
    data = ImageFolder(root=str(tmp_path))
    with pytest.warns(UserWarning, match=r"1 folders in .*train have no image \(b\)"):
        assert data.class_names() == ["a", "b", "c"]
    assert [y.tolist() for _, y in data.test(3).epoch(0)] == [[0, 1, 2]]


def test_an_image_that_would_grow_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(2):
        Image.new("L", (20_000, 1)).save(tmp_path / "a" / f"{i}.png")
    with pytest.raises(DataError, match="too long for its height"):
        next(ImageFolder(root=str(tmp_path), size=64).test(1).epoch(0))


# networks and modules -----------------------------------------------------------------------------------------------------------


def test_a_recipe_finds_files_and_modules_beside_it(there: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = lambda ann: load_recipe(str(there / "mine.yaml"), [f"ann={ann}", "data={use: own25_data.Mine, count: 9}"]).experiment  # noqa: E731
    net = load("{use: own25_net.py:Net}").ann.build()
    torch.save({"state_dict": {f"module.{name}": t for name, t in net.state_dict().items()}}, there / "best.pt")
    monkeypatch.chdir(tmp_path)
    for use in ("own25_net.py:Net", "own25_net:Net", "own25_net.Net", "own25_net.py:build", "own25_net:net"):
        experiment: Any = load(f"{{use: {use}, weights: best.pt}}")
        assert experiment.ann.describe()["weights"] == str(there / "best.pt")
        built = experiment.ann.build()
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), built.parameters(), strict=True))
    experiment = load("{use: own25_net.py:Net, weights: best.pt, classes: 3}")
    with pytest.raises(SpikepropError, match=r"fc\.weight \(2, 144\) float32, not \(3, 144\)"):
        experiment.check()
    assert type(experiment.data.build()).__name__ == "Mine"


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    "data", ["own25_data.py:Mine, count: 9", "'own25_data:make', train_arguments: {count: 9}, class_count: 3"]
)
def test_check_reads_own_data_and_a_network_that_joins_its_parameters_to_the_images(data: str) -> None:
    """The check outlines the network on a device without values, where neither examples nor parameters may be read."""
    net = "own25_net.py:Tokens" if "Mine" in data else "{use: CNN, input_shape: [1, 8, 8], classes: 3, plan: [4]}"
    found = CliRunner().invoke(main, ["check", "mine.yaml", f"ann={net}", f"data={{use: {data}}}"])
    assert (found.exit_code, "ok" in found.output) == (0, True), found.output


@pytest.mark.usefixtures("there")
def test_check_names_wrong_values_and_missing_files_in_one_message() -> None:
    """Sections that cannot be made are checked as far as they go, and network and data each by itself."""
    recipe = ["data={use: TensorData, train_file: nowhere.npz}", "ann={use: own25_net.py:Odd, weights: none.pt, act: relux}"]
    wrong = ["convert={timesteps: -8, neuron: IFF, encoder: Direct, calibrator: MaxActivation}", "evaluate.timesteps=[4, eight]"]
    built = r"own25_net.py:Odd cannot be built: KeyError: 'relux' \(.*own25_net\.py, line \d+\)"
    says = [r"no file nowhere\.npz; set data\.train_file", r"no weights file at none\.pt", built]
    more = [
        r"convert: timesteps is -8",
        "no component 'IFF'",
        r"evaluate\.timesteps: 'eight', at \[1\] of \[4, 'eight'\]",
    ]
    for overrides, expected in ((recipe, says), (recipe + wrong, says + more)):
        found = CliRunner().invoke(main, ["check", "mine.yaml", *overrides])
        text = " ".join(found.output.split())
        assert f"{len(expected)} mistakes" in text, text
        assert all(re.search(part, text) for part in expected), text


@pytest.mark.usefixtures("there")
def test_weights_are_loaded_by_name_into_classes_of_ours_and_of_torchvision(tmp_path: Path) -> None:
    for settings in ("CNN, input_shape: [1, 8, 8], classes: 10, plan: [4]", "torchvision:squeezenet1_1, classes: 2"):
        ann: Any = load_recipe("mine.yaml", [f"ann={{use: {settings}}}"]).experiment.ann
        first = ann.build()
        torch.save({"net": first.state_dict()}, tmp_path / "w.pt")
        again = load_recipe("mine.yaml", [f"ann={{use: {settings}, weights: {tmp_path / 'w.pt'}}}"]).experiment.ann.build()
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        load_weights(first, tmp_path / "w.pt")


def test_a_file_of_code_is_trusted_by_its_path_and_not_by_its_name(there: Path, tmp_path: Path) -> None:
    (tmp_path / "own25_data.py").write_text("raise SystemExit('a stranger\\'s code ran')")
    described = {"use": f"{tmp_path / 'own25_data.py'}:Mine"}
    for trusted in ((), ("own25_data",), (str(there / "own25_data.py"),)):
        with pytest.raises(RecipeError, match=rf"name it: --import {tmp_path / 'own25_data.py'}"):
            data_component(described, trusted)
    mine = {"use": f"{there / 'own25_data.py'}:Mine", "count": 9}
    assert data_component(mine, (str(there / "own25_data.py"),)).build().classes == 3
    with only_trusted(), pytest.raises(RecipeError, match="--import"):
        check_component(ImageData, described, "data")


def test_the_data_root_has_a_default_and_a_missing_set_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPIKEPROP_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert MNIST().folder() == tmp_path / ".cache" / "spikeprop" / "data"
    with pytest.raises(MissingDataError, match=r"MNIST.*\.cache/spikeprop/data.*add data\.download=true to the command"):
        MNIST().train(1, seed=0)
