"""Weights as people save them: each form is loaded completely, or refused with the remedy; nothing in a file is run."""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.ann import load_weights, read_weights
from spikeprop.ann.weights import find_weights
from spikeprop.errors import CheckpointError, DamagedFileError, SpikepropError

State = dict[str, Tensor]


class Net(nn.Module):
    """A network that nobody here wrote: functional ReLU, batch-norm."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def trained(classes: int = 3) -> Net:
    torch.manual_seed(classes)
    net = Net(classes)
    net.bn.register_buffer("running_mean", torch.ones(2))
    return net


NET = trained()
STATE: State = NET.state_dict()
OTHER: State = trained(4).state_dict()
SHIFTED: State = {name: tensor + 1 for name, tensor in STATE.items()}
SGD = torch.optim.SGD(NET.parameters(), lr=0.1, momentum=0.9)
for parameter in NET.parameters():
    SGD.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)


def before(prefix: str, state: State = STATE) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


class Call:
    """A pickled call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def saved(content: Any, **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / "w.pt", **options)
        return folder / "w.pt"

    return write


def shards(folder: Path, *, index: bool = True, lost: bool = False, named: str | None = None) -> Path:
    names = sorted(STATE)
    parts = {f"model-{i:05d}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, held in parts.items():
        save_file({name: STATE[name] for name in held}, folder / file)
    if index:
        where = {name: named or file for file, held in parts.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if lost:
        (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


def one_shard(folder: Path) -> Path:
    return shards(folder, index=False) / "model-00001-of-00002.safetensors"


def safetensors(folder: Path) -> Path:
    save_file(STATE, folder / "w.safetensors")
    return folder / "w.safetensors"


def bin_in_folder(folder: Path) -> Path:
    torch.save(STATE, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    return folder


def part(name: str, content: Any) -> Callable[[Path], Path]:
    return lambda folder: saved(content)(folder).with_name(f"w.pt#{name}")


SETTINGS = {"lr": np.float64(0.1), "where": Path("x"), "given": argparse.Namespace(depth=3), "loss": nn.CrossEntropyLoss()}
LIGHTNING = {
    "epoch": 3, "pytorch-lightning_version": "2.4", "state_dict": {**before("model."), "criterion.weight": torch.ones(3)},
    "optimizer_states": [SGD.state_dict()], "callbacks": {}, "loops": {}, "hyper_parameters": SETTINGS,
}  # fmt: skip
LOADED = {
    "state_dict": saved(STATE),
    "state_dict of PyTorch before 1.6": saved(STATE, _use_new_zipfile_serialization=False),
    "safetensors": safetensors,
    "DataParallel": saved(before("module.")),
    "torch.compile of DataParallel": saved(before("_orig_mod.module.")),
    "torch.compile of a layer": saved({name.replace("conv.", "conv._orig_mod."): t for name, t in STATE.items()}),
    "state_dict beside an optimiser": saved({"state_dict": STATE, "optimizer": SGD.state_dict(), "epoch": torch.tensor(3)}),
    "model beside an optimiser, of a GPU's float16": saved(
        {"model": {n: t.half() if t.is_floating_point() else t for n, t in STATE.items()}, "optimizer": SGD.state_dict()}
    ),
    "net of DataParallel, numpy's accuracy": saved({"net": before("module."), "acc": np.float64(93.1)}),
    "average of weights": saved({"ema": {"decay": 0.9, "shadow": STATE}}),
    "Lightning": saved(LIGHTNING),
    "Lightning, before 1.6": saved({**LIGHTNING, "hyper_parameters": {"lr": 1}}, _use_new_zipfile_serialization=False),
    "DeepSpeed": saved({"module": STATE, "global_steps": 4}),
    "a table for each layer": saved({name: getattr(NET, name).state_dict() for name in ("conv", "bn", "fc")}),
    "the network as a part of all names": saved(before("features.")),
    "without counts of batches": saved({name: t for name, t in STATE.items() if "num_batches" not in name}),
    "Hugging Face's folder with an index of shards": shards,
    "Hugging Face's folder of shards": lambda folder: shards(folder, index=False),
    "one of the shards": one_shard,
    "Hugging Face's folder with one file": bin_in_folder,
    "a part by its name": part("ema", {"model": OTHER, "ema": STATE}),
    "with and without module., the same values": saved({**STATE, **before("module.")}),
    "with and without module., those without": part("", {**STATE, **before("module.", SHIFTED)}),
    "with and without module., those with": part("module", {**SHIFTED, **before("module.")}),
    "a part of a larger network": part("backbone", {**before("backbone."), "head.weight": torch.ones(3)}),
}


@pytest.mark.parametrize("form", LOADED)
def test_form_is_loaded(tmp_path: Path, form: str) -> None:
    net = Net()
    load_weights(net, LOADED[form](tmp_path))
    rounded = 1e-3 if "float16" in form else 0.0
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, STATE[name], rtol=rounded, atol=rounded, msg=name)


def test_the_network_of_a_wrapper_is_loaded_from_names_without_it(tmp_path: Path) -> None:
    wrapper = nn.Module()
    wrapper.model = Net()
    load_weights(wrapper, saved(STATE)(tmp_path))
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in wrapper.model.state_dict().items())


def test_weights_are_preferred_to_their_average_and_a_warning_says_so(tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in STATE.items()}
    net = Net()
    with pytest.warns(UserWarning, match=r"those under 'model' are loaded; others: w\.pt#ema"):
        load_weights(net, saved({"ema": averaged, "model": STATE})(tmp_path))
    assert torch.equal(net.fc.weight, NET.fc.weight)


def archive(*names: str, size: int = 1) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "w.pt", "w", zipfile.ZIP_DEFLATED) as file:
            for name in names:
                file.writestr(f"archive/{name}", bytes(size))
        return folder / "w.pt"

    return write


def text(content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "w.pt").write_text(content)
        return folder / "w.pt"

    return write


def arrays(folder: Path) -> Path:
    np.savez(folder / "w.npz", w=np.ones(3))
    return folder / "w.npz"


def several(folder: Path) -> Path:
    for name in ("a.pt", "b.pt"):
        torch.save(STATE, folder / name)
    return folder


TWO_LINES = (
    r"(?s)pickled .*net = torch\.load\('.*w\.pt', weights_only=False\){}\n  torch\.save\(net\.state_dict\(\), '.*w_weights\.pt'\)"
)
REFUSED = {
    "a pickled network": (saved(NET), TWO_LINES.format("")),
    "a pickled network before 1.6": (saved(NET, _use_new_zipfile_serialization=False), TWO_LINES.format("")),
    "a pickled network under a key": (saved({"model": NET, "epoch": 3}), TWO_LINES.format(r"\['model'\]")),
    "TorchScript": (archive("data.pkl", "code/net.py", "constants.pkl"), r"torch\.jit\.load\(.*\)\.state_dict\(\)"),
    "torch.export": (archive("data.pkl", "archive_format"), r"torch\.export\.load"),
    "a call of the system": (saved({**STATE, "x": Call(eval, "1")}), r"more than tensors \(it calls builtins\.eval\)"),
    "a larger archive than its file": (archive("data.pkl", size=2**23), "says that it has 8,388,608 bytes"),
    "views of one number": (saved({"fc.weight": torch.zeros(1).expand(10**6, 10**6)}), "tensors of 4,000,000,000,000 bytes"),
    "half a file": (lambda f: (p := saved(STATE)(f), p.write_bytes(p.read_bytes()[:900]))[0], "damaged"),
    "nothing": (saved({"epoch": 3}), r"does not contain tensors by name; save the model's state_dict\(\)"),
    "NumPy's arrays": (arrays, "is a NumPy file"),
    "a page of a failed download": (text("<!doctype html><html>"), "is an HTML page.*get the file again"),
    "no file": (lambda folder: folder / "none.pt", r"no weights file at .*none\.pt; give its path, or put it into the folder"),
    "another network": (saved({"conv1.weight": torch.ones(1)}), r"the file lacks: conv\.weight .*Net lacks: conv1\.weight"),
    "another number of classes": (saved(OTHER), r"fc\.weight \(4, 2\) float32, not \(3, 2\).*with which it was trained"),
    "quantised weights": (saved({n: t.to(torch.int8) for n, t in STATE.items()}), "before it was quantised"),
    "values that are not finite": (saved({**STATE, "fc.bias": torch.full((3,), torch.nan)}), r"fc\.bias has values that are not"),
    "a part of a larger network": (saved({**before("a."), "b": torch.ones(1)}), r"if you mean that part, write w\.pt#a"),
    "with and without module.": (saved({**SHIFTED, **before("module.")}), r"weights that fit.*: write w\.pt# or w\.pt#module"),
    "two that fit": (saved({"student": STATE, "teacher": STATE | {"fc.bias": torch.ones(3)}}), r"w\.pt#student or w\.pt#teacher"),
    "a part that is not there": (part("emo", {"ema": STATE}), "no weights under 'emo'; it has ema"),
    "a shard that is missing": (lambda folder: shards(folder, lost=True), r"lacks 1 of 2 shards: model-00002-of-00002"),
    "an index that leaves its folder": (lambda folder: shards(folder, named="../x.safetensors"), "not a file beside it"),
    "a folder of several files": (several, r"several files of weights; name one: a\.pt, b\.pt"),
    "a folder without weights": (lambda folder: folder, r"no file of weights \(\*\.safetensors"),
    "a distributed checkpoint": (lambda f: ((f / "__0_0.distcp").write_text(""), f)[1], "dcp_to_torch"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_form_is_refused_with_the_remedy(tmp_path: Path, form: str) -> None:
    write, says = REFUSED[form]
    with pytest.raises(SpikepropError, match=says):
        load_weights(Net(), write(tmp_path))


def test_a_network_without_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not know the size of weight"):
        load_weights(torch.nn.LazyLinear(3), LOADED["state_dict"](tmp_path))


def test_functions_that_a_file_names_are_not_called(tmp_path: Path) -> None:
    """They lie beside the weights, as a configuration may, so the weights are read; a pickle would delete the folder."""
    kept = tmp_path / "kept"
    kept.mkdir()
    net = Net()
    load_weights(net, saved({"state_dict": STATE, "config": Call(shutil.rmtree, str(kept))})(tmp_path))
    assert kept.is_dir()
    assert torch.equal(net.fc.weight, NET.fc.weight)


@pytest.mark.parametrize("form", ["state_dict", "DataParallel", "average of weights", "Hugging Face's folder of shards"])
def test_tensors_are_read_by_name_without_a_network(tmp_path: Path, form: str) -> None:
    found = read_weights(LOADED[form](tmp_path))
    assert {name: tuple(t.shape) for name, t in found.items()} == {name: tuple(t.shape) for name, t in STATE.items()}


def test_several_tables_are_not_read_without_a_choice(tmp_path: Path) -> None:
    file = saved({"generator": STATE, "discriminator": OTHER})(tmp_path)
    with pytest.raises(CheckpointError, match=r"w\.pt#generator or w\.pt#discriminator"):
        read_weights(file)
    assert read_weights(f"{file}#discriminator")["fc.bias"].shape == (4,)


def test_names_in_the_weights_folder_of_the_data_root_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    file = saved({"ema": STATE})(tmp_path / "weights")
    monkeypatch.setenv("SPIKEPROP_DATA", str(tmp_path))
    assert find_weights("w.pt#ema") == file.with_name("w.pt#ema")
    assert find_weights("none.pt") == Path("none.pt")


def test_a_damaged_file_is_no_file_of_weights(tmp_path: Path) -> None:
    file = safetensors(tmp_path)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DamagedFileError, match="damaged"):
        load_weights(Net(), file)
