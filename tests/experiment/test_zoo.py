"""The zoo: every entry that is committed is complete and predicts as its card says; what is damaged or unknown is refused."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import spikeprop as sp
from spikeprop.cli import main
from spikeprop.errors import CheckpointError, DamagedFileError, MissingDataError, SpikepropError
from spikeprop.experiment.zoo import fetch
from spikeprop.experiment.zoo_entry import LARGEST_NETWORK, add_entry
from spikeprop.runtime.zoo_index import VARIABLE, entries, read_index
from tests.forked import ROOT

ZOO = ROOT / "zoo"
NAMES = sorted(read_index(ZOO / "index.json"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the zoo behind an address, and an empty cache; gives the copy's folder."""
    folder = Path(shutil.copytree(ZOO, tmp_path / "zoo"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", NAMES)
def test_every_committed_entry_is_complete_and_small(name: str) -> None:
    entry = entries()[name]
    folder = fetch(name)  # compares every SHA-256
    assert {file.name for file in folder.iterdir()} == set(entry.files)
    assert {"card.md", "run.json", "report.json", f"{name}.yaml", f"{entry.network}.safetensors"} <= set(entry.files)
    assert (folder / f"{entry.network}.safetensors").stat().st_size <= LARGEST_NETWORK
    report, card = json.loads((folder / "report.json").read_text()), (folder / "card.md").read_text()
    assert entry.accuracy.get("ANN") == (report["ann"]["accuracy"] if "ann" in report else None)
    for steps, accuracy in report[entry.network]["accuracy"].items() if entry.network != "ann" else ():
        assert entry.accuracy[steps] == accuracy
        assert f"T = {steps} | {accuracy:.2f} |" in card
    assert entry.licence in card
    assert not any("-dirty" in (commit or "") for commit in report["provenance"]["commits"].values())
    assert json.loads((folder / "run.json").read_text())["recipe"]["data"]["root"] is None


@pytest.mark.parametrize("name", ["digits-cnn-stdb", "digits-snn-direct"])
def test_a_loaded_network_predicts_as_its_card_says(name: str) -> None:
    network, entry = sp.load(name), entries()[name]
    steps = entry.timesteps
    assert steps is not None
    assert sp.snn_accuracy(network, sp.Digits(), [steps])[steps] == pytest.approx(entry.accuracy[str(steps)], abs=0.3)
    assert network.notes[-1].startswith(f"trained for T = {steps}, data = Digits")


def test_an_address_is_fetched_once_and_checked(served: Path, tmp_path: Path) -> None:
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        wanted = sp.load(ZOO / "digits-cnn-stdb")(x, 3)
        assert torch.equal(sp.load("zoo:digits-cnn-stdb")(x, 3), wanted)
        kept = tmp_path / "cache" / "spikeprop" / "zoo" / "digits-cnn-stdb" / "finetuned.safetensors"
        stamp = kept.stat().st_mtime_ns
        assert torch.equal(sp.load("digits-cnn-stdb")(x, 3), wanted)
        assert kept.stat().st_mtime_ns == stamp
        kept.write_bytes(b"x" * kept.stat().st_size)  # a cache that was damaged is filled again
        assert torch.equal(sp.load("digits-cnn-stdb")(x, 3), wanted)
        old = Path(shutil.copyfile(kept, kept.with_name("trained.safetensors")))  # of an older version of the entry
        assert torch.equal(sp.load("digits-cnn-stdb")(x, 3), wanted)
        assert not old.exists()
    file = served / "digits-snn-direct" / "trained.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match="is not the file that the zoo's index lists"):
        sp.load("digits-snn-direct")
    assert not (tmp_path / "cache" / "spikeprop" / "zoo" / "digits-snn-direct" / "trained.safetensors").exists()
    (served / "digits-snn-direct" / "trained.safetensors").write_bytes(b"x" * 200_000)
    with pytest.raises(DamagedFileError, match=r"more than 15\d,\d{3} bytes"):
        sp.load("digits-snn-direct")


def test_what_is_not_there_is_named_with_the_remedy(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'digits-cnn-stdb'"):
        sp.load("digits-cnn-std")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        sp.load("Digits.safetensors")
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/")
    with pytest.raises(MissingDataError, match="cannot fetch"):
        fetch("digits-cnn-stdb")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(MissingDataError, match=rf"is no zoo: it has no index\.json; set {VARIABLE}"):
        fetch("digits-cnn-stdb")
    monkeypatch.setenv(VARIABLE, str(served))
    (served / "digits-cnn-stdb" / "trained.safetensors").write_bytes(b"another network")
    with pytest.raises(DamagedFileError, match=r"trained\.safetensors is not in the zoo's index"):
        sp.load("digits-cnn-stdb")
    (served / "digits-cnn-stdb" / "trained.safetensors").unlink()
    (served / "digits-cnn-stdb" / "card.md").write_text("other figures")
    with pytest.raises(DamagedFileError, match=r"card\.md is not the file"):
        sp.load("digits-cnn-stdb")


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["networks"].update({"../up": found["networks"]["digits-cnn-stdb"]}),
        lambda found: found["networks"]["digits-cnn-stdb"]["files"].update({"../up": {"bytes": 1, "sha256": "0"}}),
        lambda found: found["networks"]["digits-cnn-stdb"]["files"].update({"big": {"bytes": 2**40, "sha256": "0"}}),
        lambda found: found["networks"]["digits-cnn-stdb"].update(code="import os"),
        lambda found: found.pop("networks"),
    ],
)
def test_an_index_from_anyone_cannot_reach_out_of_its_folder(change: object, tmp_path: Path) -> None:
    found = json.loads((ZOO / "index.json").read_text())
    change(found)  # type: ignore[operator]
    (tmp_path / "index.json").write_text(json.dumps(found))
    with pytest.raises(DamagedFileError, match="no index of a zoo"):
        read_index(tmp_path / "index.json")


def test_an_entry_is_made_from_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a committed entry, which is what a run folder leaves."""
    run = Path(shutil.copytree(ZOO / "digits-snn-direct", tmp_path / "run"))
    about = json.loads((run / "run.json").read_text())
    about["recipe"]["data"]["root"] = "/somebody/s/folder"
    (run / "run.json").write_text(json.dumps(about))
    result = CliRunner().invoke(main, ["zoo", "add", str(run), "again", "--about", "one line", "--to", str(tmp_path / "zoo")])
    assert result.exit_code == 0, result.output
    monkeypatch.setenv(VARIABLE, str(tmp_path / "zoo"))
    shown = CliRunner().invoke(main, ["ls", "zoo"]).output
    assert "again" in shown
    assert "99.17" in shown
    assert "somebody" not in "".join(file.read_text(errors="replace") for file in (tmp_path / "zoo" / "again").iterdir())
    assert sp.load("again").notes[-1].startswith("trained for T = 4")
    add_entry(run, "other", tmp_path / "zoo")
    assert set(entries()) == {"again", "other"}
    for name, words in (("Upper", "no name"), ("a/b", "no name")):
        with pytest.raises(SpikepropError, match=words):
            add_entry(run, name, tmp_path / "zoo")
    about["smoke"] = True
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="finish one first"):
        add_entry(run, "small", tmp_path / "zoo")
    monkeypatch.setattr("spikeprop.experiment.zoo_entry.LARGEST_NETWORK", 1000)
    about["smoke"] = False
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="at most 0"):
        add_entry(run, "large", tmp_path / "zoo")


def test_verbs_take_a_network_of_the_zoo_and_write_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["eval", "zoo:digits-snn-direct", "--limit", "40", "--activity-images", "0"])
    assert result.exit_code == 0, result.output
    assert "T = 8" in result.output  # the numbers of steps of its recipe
    assert (tmp_path / "runs" / "zoo-digits-snn-direct" / "eval-Digits" / "trained" / "report.json").is_file()
    result = CliRunner().invoke(main, ["export", "zoo:digits-snn-direct"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "zoo-digits-snn-direct" / "trained.nir").is_file()
    assert {file.name for file in (ZOO / "digits-snn-direct").iterdir()} == set(entries()["digits-snn-direct"].files)
    assert "no network 'digits-sn-direct'; did you mean" in CliRunner().invoke(main, ["eval", "zoo:digits-sn-direct"]).output
    result = CliRunner().invoke(main, ["report", "zoo:digits-snn-direct", "--samples", "20"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "zoo-digits-snn-direct" / "page.json").is_file()
    assert {file.name for file in (ZOO / "digits-snn-direct").iterdir()} == set(entries()["digits-snn-direct"].files)


@pytest.fixture(scope="module")
def small_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of one ANN, "small", and one spiking network, "spikes", of the digits; both of one short run."""
    place = tmp_path_factory.mktemp("zoo")
    few = ["data.train_limit=64", "data.test_limit=32", "ann={use: MLP, input_shape: [1, 8, 8], hidden: [16], classes: 10}"]
    more = ["train.epochs=1", "finetune.epochs=0", "convert.images=16", "evaluate.timesteps=[2]", "simulate.samples=0"]
    done = CliRunner().invoke(main, ["run", "digits_cnn_stdb", *few, *more, "--out", str(place / "run")])
    assert done.exit_code == 0, done.output
    add_entry(place / "run", "small", place / "zoo", network="ann")
    add_entry(place / "run", "spikes", place / "zoo")
    return place / "zoo"


def test_an_ann_of_the_zoo_is_converted_and_finetuned(small_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(small_zoo))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["convert", "zoo:small", "--timesteps", "2,3", "--samples", "1", "--backend", "reference"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "zoo-small-converted"
    report = json.loads((folder / "report.json").read_text())
    assert set(report["converted"]["accuracy"]) == {"2", "3"}
    assert report["simulate"]["spikes_equal"]
    assert (folder / "ann.safetensors").read_bytes() == (small_zoo / "small" / "ann.safetensors").read_bytes()
    assert report["ann"]["accuracy"] == json.loads((small_zoo / "small" / "report.json").read_text())["ann"]["accuracy"]
    again = CliRunner().invoke(main, ["convert", str(folder), "--timesteps", "1", "--samples", "0", "--out", "again"])
    assert again.exit_code == 0, again.output
    assert set(json.loads(Path("again/report.json").read_text())["converted"]["accuracy"]) == {"1"}
    result = CliRunner().invoke(main, ["finetune", "zoo:small", "--timesteps", "2", "--epochs", "1", "simulate.samples=0"])
    assert result.exit_code == 0, result.output
    assert json.loads(Path("runs/zoo-small-finetuned/report.json").read_text())["finetuned_epochs"] == 1
    assert {file.name for file in (small_zoo / "small").iterdir()} == set(entries()["small"].files)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("convert zoo:spikes", "zoo:spikes has no trained ANN: an entry holds one network, and this one's is spiking; with"),
        ("finetune zoo:spikes", "with an ANN: zoo:small"),
        ("run digits_cnn_stdb --ann zoo:spikes", "with an ANN: zoo:small"),
        ("convert zoo:smal", "did you mean 'small'"),
        ("convert zoo:small --weights best.pt", "leave --weights out"),
        ("convert zoo:small --data CIFAR10", "leave --data out"),
        ("convert zoo:small train.epochs=3", "the trained ANN of zoo:small is taken over as it is"),
        ("simulate zoo:small", "`spikeprop convert zoo:small` makes one"),
        ("diagnose zoo:small", "`spikeprop convert zoo:small` makes a folder with both"),
        ("run zoo:small", "zoo:small is a trained network and no recipe: `spikeprop convert zoo:small`"),
        ("check zoo:small", "is a trained network and no recipe"),
        ("report zoo:smal", "did you mean 'small'"),
    ],
)  # fmt: skip
def test_what_a_network_of_the_zoo_cannot_do_is_said_with_the_remedy(
    command: str, says: str, small_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(small_zoo))
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code != 0
    assert says in " ".join(result.output.split())
