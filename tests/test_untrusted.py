"""Files from elsewhere: which content is accepted, how much memory they may use, and what they can never do."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from spikeprop import CNN, IF, Direct
from spikeprop.ann.weights import load_weights
from spikeprop.cli import main
from spikeprop.convert import to_spiking
from spikeprop.data.cifar_pickles import read_batch
from spikeprop.data.photographs import read_photograph
from spikeprop.deploy import export, read_nir
from spikeprop.errors import CheckpointError, DamagedFileError, MissingDataError, NirError, RecipeError, SpikepropError
from spikeprop.experiment.network_checkpoint import load_network
from spikeprop.experiment.simulation_input import open_simulation_input
from spikeprop.learn import save_checkpoint
from spikeprop.recipe import load_recipe, recipe_folder
from spikeprop.runtime.files import read_json

ANN: dict[str, Any] = {"use": "CNN", "input_shape": [1, 8, 8], "classes": 10, "plan": [4, "A"], "hidden": []}
ABOUT = {
    "kind": "snn", "ann": ANN, "neuron": {"use": "IF"}, "encoder": {"use": "Direct"}, "timesteps": 4, "input_shape": [1, 8, 8],
    "data": {"use": "Digits", "mean": 0.0, "std": 1.0}, "seed": 0,
}  # fmt: skip


def spikeprop(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def network() -> Any:
    torch.manual_seed(0)
    return to_spiking(CNN(input_shape=(1, 8, 8), classes=10, plan=[4, "A"], hidden=[]), IF, Direct(), (1, 8, 8))


def checkpoint(path: Path, **changes: Any) -> Path:
    save_checkpoint(path, network(), {**ABOUT, **changes})
    return path


# pickles ----------------------------------------------------------------------------------------------------------------------


def batch(labels: Any = None, data: Any = None) -> dict[Any, Any]:
    images = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072) if data is None else data
    return {
        b"data": images,
        b"labels": [3, 1] if labels is None else labels,
        b"batch_label": b"a batch",
        b"filenames": [b"a", b"b"],
    }


@pytest.mark.parametrize("protocol", [2, 3])
def test_cifar_batch_is_read_as_it_was_written(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "b"
    file.write_bytes(pickle.dumps(batch(), protocol))
    images, labels = read_batch(file)
    assert images.dtype == torch.uint8
    assert images.reshape(2, 3072).numpy().tolist() == batch()[b"data"].tolist()
    assert labels.tolist() == [3, 1]


class Evil:
    def __init__(self, call: Callable[..., Any], *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("call", [exec, eval, print, OrderedDict, io.BytesIO, np.zeros], ids=lambda c: c.__name__)
def test_pickle_with_any_other_function_is_refused_and_not_run(tmp_path: Path, call: Any, protocol: int) -> None:
    mark = tmp_path / "done"
    argument = f"open({str(mark)!r}, 'w')" if call in (exec, eval) else () if call in (OrderedDict,) else b"1"
    file = tmp_path / "b"
    file.write_bytes(pickle.dumps({**batch(), b"extra": Evil(call, argument)}, protocol))
    with pytest.raises(MissingDataError, match=r"neither an array nor a dtype|opcode"):
        read_batch(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (batch(labels=[3, 10]), "integers from 0 to 9"),
        (batch(labels=[3, True]), "integers"),
        (batch(labels=[3]), "2 images and 1 labels"),
        (batch(data=np.zeros((2, 3072), dtype=np.float32)), "not bytes of pixels"),
        (batch(data=np.zeros((2, 100), dtype=np.uint8)), "an image has 3072"),
        (batch(data=[1, 2]), "not an array"),
        ([1, 2], "holds a list"),
        ({b"data": 1}, "no 'labels'"),
    ],
)
def test_pickle_with_other_content_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    (tmp_path / "b").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(MissingDataError, match=says):
        read_batch(tmp_path / "b")


def test_pickle_cannot_allocate_memory_beyond_its_size(tmp_path: Path) -> None:
    """The C unpickler would allocate a memo of 2^32 entries, or a string of any claimed length, before it reads the rest."""
    for content in (b"\x80\x02Nr\xff\xff\xff\xff.", b"\x80\x02T\xff\xff\xff\x7fab.", b"\x80\x02" + b"(" * 10**6 + b"."):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(MissingDataError):
            read_batch(tmp_path / "b")


def test_the_md5_is_compared(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(pickle.dumps(batch(), 2))
    with pytest.raises(MissingDataError, match="MD5"):
        read_batch(tmp_path / "b", "0" * 32)


def test_weights_file_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Evil(print, "run")}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "w.pt")


# sizes ------------------------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG with a size in its header and almost no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_photograph_with_too_many_pixels_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.JPEG"
    for width, height in ((9500, 9500), (60_000, 60_000)):
        file.write_bytes(png(width, height))
        with pytest.raises(MissingDataError, match=r"a\.JPEG.*pixels"):
            read_photograph(file)
    Image.new("RGB", (4, 4)).save(file, "GIF")
    with pytest.raises(MissingDataError, match="not a JPEG, PNG"):
        read_photograph(file)
    Image.new("RGB", (4, 3)).save(file, "PNG")
    assert read_photograph(file).size == (4, 3)


def test_json_and_safetensors_are_read_within_bounds(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[" * 100_000)
    with pytest.raises(DamagedFileError, match="nested too deeply"):
        read_json(file)
    with open(file, "wb") as opened:
        opened.truncate(2**40)  # sparse: no disk space, but a terabyte of memory if read
    with pytest.raises(DamagedFileError, match="bytes"):
        read_json(file)
    tensors = tmp_path / "a.safetensors"
    tensors.write_bytes(struct.pack("<Q", 2**50) + b"{}")
    with pytest.raises(CheckpointError, match="header of"):
        load_network(tensors)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ann": {**ANN, "hidden": [10**6, 10**6]}}, "describes a network of .* numbers"),
        ({"input_shape": [10**6, 10**6, 10**6]}, "an image may have at most"),
        ({"input_shape": "large"}, "an image may have at most"),
        ({"neuron": 3}, "neuron"),
        ({"ann": {"use": "antigravity.CNN"}}, "--import antigravity"),
        ({"ann": {"use": "spikeprop.__main__.CNN"}}, "not a public name"),
        ({"kind": "cat"}, "has no valid description of a network"),
        ({"seed": None}, "no valid description of a spiking network: seed is missing"),
    ],
)
def test_description_of_a_checkpoint_must_match_its_tensors(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SpikepropError, match=says):
        load_network(checkpoint(tmp_path / "a.safetensors", **changes))
    assert "antigravity" not in sys.modules


def test_code_from_outside_is_imported_for_a_checkpoint_only_if_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strangers.py").write_text("from spikeprop import CNN\nclass Net(CNN):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = checkpoint(tmp_path / "a.safetensors", ann={**ANN, "use": "strangers.Net"})
    result = spikeprop("export", file)
    assert result.exit_code == 1
    assert "--import strangers" in result.output
    assert "strangers" not in sys.modules
    page = ("explain", file, "--samples", "1", "--timesteps", "1", "--entries", "0", "-o", tmp_path / "p.html")
    assert "--import strangers" in spikeprop(*page).output
    assert "strangers" not in sys.modules
    assert spikeprop("export", file, "--import", "strangers").exit_code == 0
    assert sys.modules.pop("strangers")
    result = spikeprop(*page, "--import", "strangers")
    assert result.exit_code == 0, result.output
    assert sys.modules.pop("strangers")


CALLS = [
    *[
        {"ann": {"use": use, "repo_or_dir": "evil", "model": "net", "source": "local"}}
        for use in ("torch.hub:load", "torch.hub.load")
    ],
    {"ann": {"use": "spikeprop.runtime.files:write_text", "path": "written", "text": "evil"}},
    {"ann": {"use": "os:mkdir", "path": "written"}},
    {"data": {"use": "torch.hub:load", "holdout": 5, "arguments": {"repo_or_dir": "evil", "model": "net", "source": "local"}}},
    {"data": {"use": "os:mkdir", "holdout": 5, "arguments": {"path": "written"}}},
]


@pytest.mark.parametrize("changes", CALLS)
def test_a_checkpoint_calls_no_function_of_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "hubconf.py").write_text("open('written', 'w')\n")
    monkeypatch.chdir(tmp_path)
    file = checkpoint(tmp_path / "a.safetensors", **changes)
    result = spikeprop("eval", file, "--timesteps", "1", "--limit", "4")
    assert result.exit_code == 1
    assert "may not call functions by itself" in result.output
    assert "--import" in result.output
    assert not (tmp_path / "written").exists()


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """A foreign module with a data set; returns a function that says whether it was imported, and resets that."""
    (tmp_path / "strangers.py").write_text("from spikeprop.data import Digits\nclass Photos(Digits):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: sys.modules.pop("strangers", None) is not None
    sys.modules.pop("strangers", None)


SHOWING = {
    "eval": ("eval", "--limit", "20", "--device", "cpu", "--restart"),
    "simulate": ("simulate", "--backend", "reference", "--samples", "2"),
    "budget": ("budget", "--samples", "2"),
    "explain": ("explain", "--samples", "1", "--timesteps", "1", "--entries", "0", "-o", "p.html"),
}


@pytest.mark.parametrize(
    ("command", "form"), [*((command, "checkpoint") for command in SHOWING), ("simulate", "nir"), ("budget", "nir")]
)
def test_a_data_set_from_outside_is_imported_only_if_the_user_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strangers: Callable[[], bool], command: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def show(data: str, *options: str) -> Result:
        said = {"use": data, "mean": 0.0, "std": 1.0}
        file = checkpoint(tmp_path / "a.safetensors", data=said)
        if form == "nir":
            export(network(), file := tmp_path / "a.nir", {**ABOUT, "data": said})
        verb, *others = SHOWING[command]
        return spikeprop(verb, file, *others, *options)

    refused = show("strangers.Photos")
    assert refused.exit_code == 1
    assert "data: 'strangers.Photos' is code of 'strangers'" in " ".join(refused.output.split())
    assert "--import strangers" in refused.output
    assert not strangers()
    accepted = show("strangers.Photos", "--import", "strangers")
    assert accepted.exit_code == 0, accepted.output
    assert strangers()
    named = show("Digits", "--data", "strangers.Photos")  # the user trusts it, like a recipe
    assert named.exit_code == 0, named.output
    assert strangers()


def test_naming_a_data_set_trusts_only_its_package(tmp_path: Path, strangers: Callable[[], bool]) -> None:
    file = checkpoint(tmp_path / "a.safetensors", ann={**ANN, "use": "antigravity.CNN"})
    assert "--import antigravity" in spikeprop("eval", file, "--data", "strangers.Photos").output
    assert "antigravity" not in sys.modules
    assert not strangers()


def test_a_run_with_a_data_set_from_outside_is_evaluated_and_shown_if_its_package_is_named(
    tmp_path: Path, strangers: Callable[[], bool]
) -> None:
    made, page = tmp_path / "run", tmp_path / "p.html"
    ran = spikeprop("run", "digits_cnn_stdb", "--smoke", "data.use=strangers.Photos", "simulate.samples=0", "--out", made)
    assert ran.exit_code == 0, ran.output
    assert strangers()
    folder = Path(shutil.copytree(made, tmp_path / "copy"))  # as it would come from anyone; the user's own is below
    for options, trusted in (((), False), (("--import", "strangers"), True)):
        evaluated = spikeprop("eval", folder, "--limit", "20", *options)
        assert (evaluated.exit_code == 0) == trusted, evaluated.output
        assert ("--import strangers" in evaluated.output) != trusted
        assert strangers() == trusted
        assert spikeprop("report", folder, "-o", page, *options).exit_code == 0
        assert ("--import strangers" in page.read_text()) != trusted
        assert strangers() == trusted

    own = spikeprop("eval", made, "--limit", "20")
    assert own.exit_code == 0, own.output
    assert strangers()


def test_existing_folder_imports_nothing_when_a_run_is_written_there(tmp_path: Path, strangers: Callable[[], bool]) -> None:
    described = load_recipe("digits_cnn_stdb").describe()
    described["data"]["use"] = "strangers.Photos"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"name": "x", "recipe": described}))
    refused = spikeprop("run", "digits_cnn_stdb", "--out", folder)
    assert refused.exit_code == 1
    assert "holds a run of another recipe (it differs in data.use)" in " ".join(refused.output.split())
    assert not strangers()


def test_checkpoint_does_not_choose_the_data_root(tmp_path: Path) -> None:
    data = {"use": "MNIST", "root": str(tmp_path / "elsewhere"), "download": True}
    with open_simulation_input(checkpoint(tmp_path / "a.safetensors", data=data)) as given:
        assert dict(given.data) == {"use": "MNIST"}


# NIR --------------------------------------------------------------------------------------------------------------------------


def nir_file(path: Path) -> Path:
    export(network(), path, ABOUT)
    return path


def test_truncated_nir_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NirError, match=r"there is no file .*missing\.nir"):
        read_nir(tmp_path / "missing.nir")
    file = nir_file(tmp_path / "a.nir")
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"not HDF5 at all"):
        file.write_bytes(content)
        with pytest.raises(NirError, match=r"a\.nir is (empty|not a NIR file, or only a part of one|a text file)"):
            read_nir(file)
    with h5py.File(file, "w") as opened:
        opened["other"] = 1
    with pytest.raises(NirError, match=r"a\.nir is not a NIR file"):
        read_nir(file)


def test_a_nir_file_cannot_reach_another_file(tmp_path: Path) -> None:
    file, other = nir_file(tmp_path / "a.nir"), nir_file(tmp_path / "b.nir")
    with h5py.File(file) as found:
        nodes: Any = found["node/nodes"]
        name = next(n for n in nodes if "weight" in nodes[n])
    where = f"node/nodes/{name}/weight"

    def corrupted(change: Callable[[Any], None]) -> Path:
        nir_file(file)
        with h5py.File(file, "a") as opened:
            del opened[where]
            change(opened)
        return file

    def external(opened: Any) -> None:
        opened[where] = h5py.ExternalLink(str(other), where)

    def soft(opened: Any) -> None:
        opened[where] = h5py.SoftLink("/node/nodes")

    def stored_elsewhere(opened: Any) -> None:
        opened.create_dataset(where, (10, 64), "f4", external=[(str(other), 0, 2560)])

    def claimed(opened: Any) -> None:
        opened.create_dataset(where, (10**6, 10**6), "f4", chunks=(1000, 1000))

    def looped(opened: Any) -> None:
        opened[where] = opened["node"]

    for change, says in (
        (external, "link"), (soft, "link"), (stored_elsewhere, "another file"), (claimed, "far more than"), (looped, "deeper")
    ):  # fmt: skip
        with pytest.raises(NirError, match=says):
            read_nir(corrupted(change))
    assert read_nir(nir_file(file)).nodes.keys() >= {name}


@pytest.mark.parametrize("shape", [[10**5, 10**5, 10**5], [-1, 8, 8], [0]])
def test_nir_file_with_too_many_neurons_is_refused(tmp_path: Path, shape: list[int]) -> None:
    file = nir_file(tmp_path / "a.nir")
    with h5py.File(file, "a") as found:
        del found["node/nodes/input/shape"]
        found["node/nodes/input/shape"] = np.array(shape)
    with pytest.raises(SpikepropError, match="tensor of shape"), open_simulation_input(file):
        pass


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -3, "many", [1, 2]])
def test_nir_file_with_an_invalid_number_of_steps_is_refused(tmp_path: Path, value: Any) -> None:
    file = nir_file(tmp_path / "a.nir")
    with h5py.File(file, "a") as found:
        del found["node/metadata/timesteps"]
        found["node/metadata/timesteps"] = value
    with pytest.raises(NirError, match="timesteps"), open_simulation_input(file):
        pass


# recipes ----------------------------------------------------------------------------------------------------------------------


def recipe(path: Path, *changes: tuple[str, str]) -> Path:
    text = (recipe_folder() / "digits_cnn_stdb.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_check_no_import_names_what_would_be_imported(tmp_path: Path) -> None:
    file = recipe(
        tmp_path / "r.yaml",
        ("rule: BPTT", "rule: {use: antigravity.Rule, inner: {use: this.Too}}"),
        ("encoder: Direct", "encoder: this.Encoder"),
    )
    result = spikeprop("check", file, "--no-import")
    assert result.exit_code == 0, result.output
    assert "convert.encoder: this.Encoder" in result.output
    assert "finetune.rule: antigravity.Rule" in result.output
    assert "finetune.rule.inner.use: this.Too" in result.output
    assert {"antigravity", "this"}.isdisjoint(sys.modules)
    result = spikeprop("check", "digits_cnn_stdb", "--no-import")
    assert "all of it is part of spikeprop" in result.output
    file = recipe(tmp_path / "r.yaml", ("use: HybridConversion", "use: this.Experiment"))
    assert "use: this.Experiment" in spikeprop("check", file, "--no-import").output
    file = recipe(tmp_path / "r.yaml", ("epochs: 60", "epochs: sixty"))
    result = spikeprop("check", file, "--no-import")
    assert result.exit_code == 1
    assert "train.epochs" in result.output


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{k}: &{k} [{', '.join([f'*{j}'] * 9)}]\n" for j, k in zip("abcdefgh", "bcdefghi")),
        "a: &a {x: 1}\nb: &b [*a, *b]\n",
        "[" * 5000,
        "seed: 2001-99-99\n",
        "seed: " + "9" * 10_000,
        "? [a, b]\n: 1\n",
        "seed: !!python/object/apply:os.system [echo]\n",
        "a: *nothing\n",
        "use: 3\n",
        "use: spikeprop.__main__.x\n",
    ],
)
def test_yaml_that_is_not_a_recipe_is_refused_quickly(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(str(tmp_path / "r.yaml"))


def test_a_recipe_has_a_largest_size(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("#" * 2**21)
    with pytest.raises(RecipeError, match="bytes"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_a_module_that_fails_when_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise ZeroDivisionError('in its own code')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"broken_module.*in its own code"):
        load_recipe(str(recipe(tmp_path / "r.yaml", ("encoder: Direct", "encoder: broken_module.Encoder"))))


def test_damaged_report_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe": 1})[:-3])
    result = spikeprop("run", "digits_cnn_stdb", "--out", tmp_path)
    assert result.exit_code == 1
    assert "run.json is damaged" in result.output.replace("\n", " ")
