"""The command line on real digits: run, resume, kill, eval, export, simulate, and its errors."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn

from spikeprop.cli import main
from spikeprop.data import in_memory
from spikeprop.deploy import read_nir
from spikeprop.errors import RecipeError, Stopped
from spikeprop.experiment.pipeline import HybridConversion
from spikeprop.learn import save_checkpoint
from spikeprop.plugins import ModelParallel
from spikeprop.recipe import load_recipe, recipe_folder
from tests.conftest import need
from tests.data import layouts
from tests.forked import Program
from tests.hardware.test_lava import lava_or_skip

SHORT = ["train.epochs=6", "finetune.epochs=3", "evaluate.timesteps=[2,8]", "simulate.samples=0"]
STAGES = ["data", "ann", "convert", "finetune", "evaluate", "export", "simulate"]


def spikeprop(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of digits_cnn_stdb, its simulation left out."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    result = spikeprop("run", "digits_cnn_stdb", *SHORT, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {"recipe.yaml", "run.json", "stages.json", "metrics.jsonl", "report.json", "report.png", "network.nir"} <= names
    for kind in ("ann", "converted", "finetuned"):
        assert {f"{kind}.safetensors", f"{kind}.json"} <= names
    assert {name for name in names if name.startswith(".") or "part" in name or "progress" in name} == {".lock"}
    run = json.loads((finished / "run.json").read_text())
    assert run["recipe"]["seed"] == 0
    assert run["versions"]["torch"]
    values = report(finished)
    assert values["ann"]["accuracy"] > 80
    assert set(values["converted"]["accuracy"]) == set(values["finetuned"]["accuracy"]) == {"2", "8"}
    assert set(values["seconds"]) == set(STAGES)
    layers = ["features_0", "features_3", "classifier_1"]
    assert list(values["rates"]) == list(values["synops"]) == ["input", *layers]
    assert list(values["thresholds"]) == layers
    assert values["macs"] == 32 * 64 * 9 + 64 * 16 * 32 * 9 + 256 * 64 + 640
    assert set(values["energy_joules"]) >= {"ann", "snn"}
    assert values["simulate"] == {"samples": 0}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["ann"] * 6 + ["finetune"] * 3


def test_running_again_skips_finished_stages(finished: Path) -> None:
    stamps = {name: (finished / name).stat().st_mtime_ns for name in ("ann.safetensors", "finetuned.safetensors", "network.nir")}
    started = time.monotonic()
    assert spikeprop("run", "digits_cnn_stdb", *SHORT, "--out", finished).exit_code == 0
    assert time.monotonic() - started < 3
    assert stamps == {name: (finished / name).stat().st_mtime_ns for name in stamps}


def test_a_folder_of_another_recipe_is_refused(finished: Path) -> None:
    result = spikeprop("run", "digits_cnn_stdb", *SHORT, "finetune.lr=1e-5", "--out", finished)
    assert result.exit_code == 1
    assert "another recipe (it differs in finetune.lr)" in result.output
    assert "--out" in result.output


def test_a_folder_without_a_newer_setting_or_of_another_device_continues(finished: Path) -> None:
    file = finished / "run.json"
    whole = file.read_text()
    described = json.loads(whole)
    del described["recipe"]["device"], described["recipe"]["precision"]
    try:
        file.write_text(json.dumps(described))
        assert spikeprop("run", "digits_cnn_stdb", *SHORT, "device=cpu", "--out", finished).exit_code == 0
    finally:
        file.write_text(whole)


@pytest.mark.slow
def test_sigkill_in_the_middle_of_fine_tuning_changes_nothing(finished: Path, tmp_path: Path) -> None:
    """A real process is killed; another continues from its files."""
    command = ("run", "digits_cnn_stdb", *SHORT, "--out", tmp_path / "r")
    metrics = tmp_path / "r" / "metrics.jsonl"
    with Program(None, command, tmp_path / "log") as process:
        process.until(lambda: metrics.exists() and '"finetune", "epoch": 0' in metrics.read_text())
    assert process.poll() == -signal.SIGKILL
    stages = json.loads((tmp_path / "r" / "stages.json").read_text())
    assert "convert" in stages
    assert "finetune" not in stages, "the kill came too late to mean anything"
    assert spikeprop(*command).exit_code == 0
    resumed, whole = (load_file(folder / "finetuned.safetensors") for folder in (tmp_path / "r", finished))
    assert resumed.keys() == whole.keys()
    assert all((resumed[name] == whole[name]).all() for name in whole)
    assert report(tmp_path / "r")["finetuned"] == report(finished)["finetuned"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_whole_job_runs_on_cuda(tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "run"
    result = spikeprop("run", "digits_cnn_stdb", *SHORT, "device=cuda", f"precision={precision}", "--out", folder)
    assert result.exit_code == 0, result.output
    assert report(folder)["device"].startswith("cuda")
    assert report(folder)["finetuned"]["accuracy"]["8"] > 80
    shown = [spikeprop("eval", folder, "--network", "ann", "--device", device, "--restart").output for device in ("cpu", "cuda")]
    assert shown[0] == shown[1]


def test_eval_agrees_with_the_report(finished: Path) -> None:
    accuracy = report(finished)["finetuned"]["accuracy"]["8"]
    result = spikeprop("eval", finished / "finetuned.safetensors", "--data", "Digits", "--timesteps", "2,8", "--batch-size", 360)
    assert result.exit_code == 0, result.output
    assert f"T = 8  {accuracy:.2f} %" in result.output
    assert (finished / "eval-Digits" / "finetuned" / "report.png").exists()
    shown = spikeprop("eval", finished, "--limit", 50, "--out", finished / "eval-default").output
    assert all(f"T = {t}" in shown for t in (2, 8))  # those that the recipe evaluates, and not its training's alone
    result = spikeprop("eval", finished / "ann.safetensors")
    assert f"{report(finished)['ann']['accuracy']:.2f} %" in result.output


def test_the_report_has_activity_at_every_number_of_steps(finished: Path) -> None:
    values = report(finished)
    for kind in ("converted", "finetuned"):
        found = values[kind]
        assert set(found["activity"]) == set(found["interval"]) == {"2", "8"}
        low, high = found["interval"]["8"]
        assert low < found["accuracy"]["8"] < high
        assert found["activity"]["2"]["energy_joules"] < found["activity"]["8"]["energy_joules"]
    assert values["rates"] == values["finetuned"]["activity"]["8"]["rates"]
    assert values["energy_joules"]["snn"] == values["finetuned"]["activity"]["8"]["energy_joules"]
    assert not (finished / "evaluate.progress").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eval", "finetuned.safetensors", "--data", "Digits", "--timesteps", "0"], "at least 1 step"),
        (["eval", "finetuned.safetensors", "--data", "Digits", "--timesteps", "ten"], "whole numbers"),
        (["eval", "finetuned.safetensors", "--data", "Digit"], "did you mean 'Digits'"),
        (["eval", "missing.safetensors", "--data", "Digits"], "no checkpoint at"),
        (["eval", "half.progress.safetensors", "--data", "Digits"], "training progress"),
        (["eval", "finetuned.safetensors", "--data", "Digits", "--device", "tpu"], "use auto, cpu, cuda or cuda:1"),
        (["export", "ann.safetensors"], "is an ANN"),
    ],
)
def test_messages_of_wrong_commands_name_the_mistake(finished: Path, arguments: list[str], says: str) -> None:
    save_checkpoint(finished / "half.progress.safetensors", nn.Linear(1, 1), {"training": {}})
    result = spikeprop(arguments[0], finished / arguments[1], *arguments[2:])
    assert result.exit_code != 0
    assert says in result.output
    assert "Traceback" not in result.output


def test_export_and_simulate(finished: Path, tmp_path: Path) -> None:
    assert spikeprop("export", finished / "finetuned.safetensors", "--out", tmp_path / "n.nir").exit_code == 0
    assert (tmp_path / "n.nir").stat().st_size > 1000
    refused = spikeprop("export", finished / "finetuned.safetensors", "-o", tmp_path / "norse.nir", "--for", "norse")
    assert "resets by subtraction, which NIR cannot say" in " ".join(refused.output.split())
    assert not (tmp_path / "norse.nir").exists()
    onnx = spikeprop(
        "export", finished / "finetuned.safetensors", "-o", tmp_path / "n.onnx", "--format", "onnx", "--precision", "fixed"
    )
    assert onnx.exit_code == 0, onnx.output
    assert (tmp_path / "n.onnx").stat().st_size > 1000
    told = spikeprop("precision", finished, "--samples", 20, "--cores", 1000, "--json")
    found = json.loads(told.stdout)
    assert [row["bits"] for row in found["curve"]] == [8, 6, 4, 2, "ternary"]
    assert found["curve"][0]["accuracy"] > 80
    assert found["mixed"]["bits"].keys() == {row["name"] for row in found["layers"]}
    netx = spikeprop("export", finished / "finetuned.safetensors", "-o", tmp_path / "n.net", "--format", "netx")
    assert "netx has no exponent for real-valued input, and this network's encoder is Direct" in " ".join(netx.output.split())
    assert not (tmp_path / "n.net").exists()
    lava_or_skip()
    result = spikeprop("simulate", finished / "converted.safetensors", "--samples", 3, "--timesteps", 6)
    assert result.exit_code == 0, result.output
    assert "all equal" in result.output
    assert "predictions agree          100.0 %" in result.output


def test_the_reference_simulator_needs_no_python_310(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEPROP_LAVA_PYTHON", "/nowhere")
    arguments = ("simulate", finished / "converted.safetensors", "--samples", 120, "--timesteps", 6)
    result = spikeprop(*arguments, "--backend", "reference")
    assert result.exit_code == 0, result.output
    assert "all equal" in result.output
    fixed = spikeprop(*arguments, "--backend", "reference", "--precision", "fixed")
    assert fixed.exit_code == 0, fixed.output
    for text in ("accuracy, pytorch", "accuracy, reference", "weights off by"):
        assert text in fixed.output
    assert re.search(r"first difference +sample \d+, layer \w+, neuron \[[\d, ]+\], step \d", fixed.output)
    assert re.search(r"layer +spikes in PyTorch +in reference +that differ\n +\w+ +[\d,]+ +[\d,]+ +[\d,]+\n", fixed.output)


def test_simulate_takes_a_nir_file_that_export_wrote(finished: Path) -> None:
    for options in ([], ["--precision", "fixed"]):
        shared = ["--samples", 30, "--backend", "reference", *options]
        of_file = spikeprop("simulate", finished / "network.nir", *shared)
        assert of_file.exit_code == 0, of_file.output
        of_checkpoint = spikeprop("simulate", finished / "finetuned.safetensors", *shared)
        assert of_file.stdout.splitlines()[2:] == of_checkpoint.stdout.splitlines()[2:]  # the first names the file
        assert ("all equal" in of_file.stdout) == (not options)


def test_simulate_names_the_options_that_a_foreign_nir_file_needs(tmp_path: Path) -> None:
    """Names with dots, neurons that reset to zero, no metadata."""
    shape, ones = (1, 8, 8), np.ones(64)
    nodes = {
        "in": nir.Input(input_type={"input": np.array(shape)}),
        "flat": nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1),
        "a.b": nir.IF(r=ones, v_threshold=ones * 0.7),
        "input": nir.IF(r=ones, v_threshold=ones * 1.3),
        "last": nir.Linear(weight=np.random.default_rng(0).normal(size=(10, 64))),
        "out": nir.Output(output_type={"output": np.array([10])}),
    }
    edges = [("in", "flat"), ("flat", "a.b"), ("a.b", "input"), ("input", "last"), ("last", "out")]
    file = tmp_path / "theirs.h5"
    nir.write(str(file), nir.NIRGraph(nodes=nodes, edges=edges))

    def refused(*options: str | int) -> str:
        result = spikeprop("simulate", file, "--backend", "reference", *options)
        assert result.exit_code != 0
        return " ".join(result.output.split())

    assert "theirs.h5 does not name its encoder; pass --encoder Direct or Frames or Latency or Poisson" in refused()
    assert "pass --data and --timesteps" in refused("--encoder", "Direct")
    assert "pass --timesteps" in refused("--encoder", "Direct", "--data", "Digits")
    assert "images of MNIST are (1, 28, 28); pass another --data" in refused(
        "--encoder", "Direct", "--data", "MNIST", "--timesteps", 5
    )
    shared: list[str | int] = ["--encoder", "Direct", "--data", "Digits", "--timesteps", 5, "--samples", 9]
    assert "does not say how its network's images are normalised" in refused(*shared)
    assert "pass --std (one number" in refused(*shared, "--mean", 0)
    assert "give one number, or one for each channel" in refused(*shared, "--mean", "0.1;0.2")
    assert "these images have 1 channels" in refused(*shared, "--mean", "0.49,0.48,0.45", "--std", 1)
    result = spikeprop("simulate", file, "--backend", "reference", *shared, "--mean", 0, "--std", 1)
    assert result.exit_code == 0, result.output
    assert "all equal" in result.output
    assert re.search(r"a_b +[1-9]\d+ +[1-9]\d+ +0", result.output)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "not a NIR file, or only a part" in refused("--encoder", "Direct")


def test_verbs_on_a_run_folder_print_json(finished: Path, tmp_path: Path) -> None:
    found = {}
    for verb in (
        ["export", "-o", tmp_path / "n.nir"],
        ["budget", "--samples", 0],
        ["report", "--samples", 0, "-o", tmp_path / "p"],
    ):
        result = spikeprop(verb[0], finished, *verb[1:], "--json")
        assert result.exit_code == 0, result.output
        found |= json.loads(result.stdout)
    assert found["file"] == str(tmp_path / "n.nir")
    assert found["budget"]["chips"] == 1
    assert found["bytes"] == (tmp_path / "p").stat().st_size
    runs = json.loads(spikeprop("ls", "runs", finished.parent, "--json").stdout)["runs"]
    assert [(run["run"], run["state"]) for run in runs] == [(finished.name, "finished")]


def test_budget(finished: Path) -> None:
    result = spikeprop("budget", finished / "network.nir", "--samples", 5)
    assert result.exit_code == 0, result.output
    assert re.search(r"Loihi 2, estimated +\d+ cores, 1 chip", result.output)
    assert re.search(r"SynOps a sample +[1-9][\d,]+ \(mean of 5; T = \d+\)", result.output)
    assert re.search(
        r"layer +neurons +synapses +fan in +fan out +spike bits +axons +axons per core +bytes +cores +limited by\n", result.output
    )
    of_checkpoint = spikeprop("budget", finished / "finetuned.safetensors", "--samples", 0)
    assert of_checkpoint.exit_code == 0, of_checkpoint.output
    assert "SynOps" not in of_checkpoint.output
    assert "spikes of" not in of_checkpoint.output


def test_a_target_is_checked_before_training_and_before_anything_is_written(finished: Path, tmp_path: Path) -> None:
    before = spikeprop("check", "digits_cnn_stdb", "--target", "speck")
    assert before.exit_code == 1
    assert "does not fit speck\n  layer 'input': the input is numbers (Direct); speck reads spikes alone: use" in before.output
    assert "(convert.encoder=Poisson; trained from scratch: encoder=Poisson;" in before.output
    assert "1 of 1 recipes do not fit speck: digits_cnn_stdb" in before.output
    fitting = spikeprop("check", "digits_cnn_stdb", "--target", "loihi2")
    assert fitting.exit_code == 0, fitting.output
    assert re.search(r"fits loihi2, \d+ cores on 1 chip\n", fitting.output)
    assert re.search(r"layer +neurons +synapses", fitting.output)
    file = tmp_path / "n.nir"
    refused = spikeprop("export", finished, "-o", file, "--target", "xylo")
    assert refused.exit_code == 1
    assert "the network does not fit xylo; what stands in the way is above" in refused.output
    assert not file.exists()
    fixed = spikeprop("export", finished, "-o", file, "--target", "generic-4")
    assert fixed.exit_code == 0, fixed.output
    assert re.search(r"in the integers of generic-4\n +integers of \S+ +weights off by \d+\.\d+ % in [2-4] bits", fixed.output)
    simulated = spikeprop("simulate", finished, "--backend", "reference", "--samples", 3, "--target", "generic-4")
    assert simulated.exit_code == 0, simulated.output
    assert re.search(r"integers of \S+ +weights off by", simulated.output)
    assert "there is no target 'loihi3'; did you mean" in spikeprop("export", finished, "--target", "loihi3").output


def test_a_recipe_whose_network_does_not_fit_its_target_is_refused() -> None:
    refused = spikeprop("check", "digits_cnn_stdb", "simulate.target=speck")
    assert refused.exit_code != 0
    assert "simulate.target: the network does not fit speck\n  layer 'input': the input is numbers" in refused.output
    assert (
        "there is no target 'spek'; did you mean 'speck'?" in spikeprop("check", "digits_cnn_stdb", "simulate.target=spek").output
    )


def test_a_target_s_budget_and_energies(finished: Path) -> None:
    result = spikeprop("budget", finished, "--samples", 5, "--target", "loihi1")
    assert result.exit_code == 0, result.output
    assert re.search(r"Loihi, estimated +\d+ cores", result.output)
    assert re.search(r"does not fit +layer '.+': a reset by subtract; loihi1 resets by zero: use", result.output)
    numbers = r"[\d.e-]+ to [\d.e+]+"
    for row in (
        rf"arithmetic +{numbers} +{numbers}\n",
        rf"memory +{numbers} +{numbers}\n",
        rf"loihi1 +{numbers} +-\n",
        "memory: SRAM",
    ):
        assert re.search(row, result.output), (row, result.output)
    assert "SynOps a MAC in" in result.output


def test_ls_shows_recipes_and_components() -> None:
    assert "digits_cnn_stdb" in spikeprop("ls").output
    output = spikeprop("ls", "all").output
    for text in (
        "digits_cnn_stdb",
        "LIF(v_threshold=1.0, leak=0.99",
        "spikeprop.plugins.ActivationRelaxation(loss=CrossEntropy",
        "ThresholdBalancing(timesteps=100",
        "STDB(alpha=0.3, beta=0.01)",
        "spikeprop.learn.MuonSGD(lr=0.1, matrix_lr=0.02",
        "spikeprop.deploy.QuantisedBPTT(",
        "VanRossum(tau=10.0)",
        "TokenHead()",
        "UpperRate(limit, strength=1.0",
        "QCFS(levels=8",
    ):
        assert text in output
    only = spikeprop("ls", "Encoder").output
    assert "Poisson" in only
    assert "LIF" not in only

    assert "convert.neuron.surrogate" in spikeprop("ls", "convert.neuron.surrogate").output
    assert spikeprop("ls", "loss").output == spikeprop("ls", "losses").output
    assert "EachStep" not in spikeprop("ls", "Loss").output
    fits = spikeprop("ls", "muonsgd").output
    assert fits.count("spikeprop.learn.MuonSGD(lr=0.1") == 1
    assert "train.optimizer" in fits
    assert "Adam" not in fits
    assert spikeprop("ls", "spikeprop.learn.MuonSGD").output == fits
    assert "did you mean 'MuonSGD'" in " ".join(spikeprop("ls", "MuonSDG").output.split())
    slip = spikeprop("ls", "run")
    assert slip.exit_code != 0
    assert "did you mean 'runs'" in " ".join(slip.output.split())
    unknown = spikeprop("ls", "quantum")
    assert unknown.exit_code != 0
    assert "'quantum' is neither a slot nor a component; known: " in " ".join(unknown.output.split())


def test_check_names_mistakes() -> None:
    assert "digits_mlp_stdb: ok" in spikeprop("check", "digits_mlp_stdb", "cifar10_vgg5_stdb").output
    result = spikeprop("check", "digits_mlp_stdb", "finetune.lr=fast")
    assert result.exit_code == 1
    assert "finetune.lr" in result.output
    result = spikeprop("check", "digits_mlp_stdb", "convert.neuron.leak=1.5")
    assert result.exit_code == 1
    assert "convert.neuron: LIF: leak is 1.5" in result.output


def test_check_takes_overrides_as_run_does() -> None:
    both = spikeprop("check", "digits_mlp_stdb", "finetune.epochs=1", "cifar10_vgg5_stdb", "seed=3")
    assert both.exit_code == 0, both.output
    assert both.output.count(": ok (HybridConversion)") == 2
    assert spikeprop("check", "digits_mlp_stdb", "cifar10_vgg5_stdb", "finetune.epoch=1").exit_code == 1
    none = spikeprop("check", "finetune.epochs=1")
    assert none.exit_code == 2
    assert "give at least one recipe" in none.output


def test_verbs_for_checkpoints_take_a_run_folder(finished: Path, tmp_path: Path) -> None:
    for options, network in (([], "finetuned"), (["--network", "converted"], "converted")):
        written = [spikeprop("export", *source, "-o", tmp_path / f"{i}.nir")
                   for i, source in enumerate(([finished, *options], [finished / f"{network}.safetensors"]))]  # fmt: skip
        assert [result.exit_code for result in written] == [0, 0], written
        graphs = [read_nir(tmp_path / f"{i}.nir") for i in range(2)]
        theta = [{name: vars(n)["v_threshold"] for name, n in g.nodes.items() if "v_threshold" in vars(n)} for g in graphs]
        assert theta[0].keys() == theta[1].keys()
        assert all(np.array_equal(theta[0][name], theta[1][name]) for name in theta[0])
        for verb in (["simulate", "--backend", "reference"], ["budget"]):
            of_folder = spikeprop(*verb, finished, *options, "--samples", 5)
            of_checkpoint = spikeprop(*verb, finished / f"{network}.safetensors", "--samples", 5)
            assert of_folder.exit_code == 0, of_folder.output
            assert of_folder.stdout.splitlines()[2:] == of_checkpoint.stdout.splitlines()[2:]  # the first names the source
    for verb in ("export", "simulate", "budget"):
        for source, network, says in (
            (finished, "ann", "is an ANN"),
            (finished / "finetuned.safetensors", "finetuned", "leave --network out"),
            (tmp_path, "finetuned", "has no finetuned.safetensors"),
        ):
            refused = spikeprop(verb, source, "--network", network)
            assert refused.exit_code == 1
            assert says in " ".join(refused.output.split())


def test_exit_codes_are_those_of_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = spikeprop("--help").output
    for code in ("0 ", "1 ", "2 ", "130", "143"):
        assert f"\n    {code}" in listed
    assert spikeprop("--help").exit_code == 0
    assert spikeprop("check", "nothing").exit_code == 1
    for wrong in (["nothing"], ["check"], ["run"], ["run", "digits_cnn_stdb", "--nothing"], ["ls", "foo"]):
        assert spikeprop(*wrong).exit_code == 2

    def interrupted(error: BaseException) -> int:
        def load(*_: Any) -> None:
            raise error

        monkeypatch.setattr("spikeprop.recipe.load_recipe", load)
        return spikeprop("check", "digits_cnn_stdb").exit_code

    assert interrupted(KeyboardInterrupt()) == interrupted(Stopped(signal.SIGINT)) == 130
    assert interrupted(Stopped(signal.SIGTERM)) == 143
    assert interrupted(RecipeError("wrong")) == 1


def test_a_run_that_cannot_work_leaves_no_folder(tmp_path: Path) -> None:
    for override in ("ann.classes=5", "data.train_limit=0", "device=cuda:99", "train.clip=-1"):
        result = spikeprop("run", "digits_mlp_stdb", override, "--out", tmp_path / "run")
        assert result.exit_code == 1, result.output
        assert override.partition("=")[0].split(".")[-1] in result.output
        assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "run").exists()
    assert spikeprop("run", "digits_mlp_stdb", "--threads", 0).exit_code == 2


def test_a_full_disk_while_saving_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write fails from the first network on, the one of the stage's seconds too."""
    import spikeprop.runtime.files as files

    monkeypatch.setattr(files.os, "fsync", _disk_fills_up(tmp_path / "run" / "stages.json"))
    result = spikeprop("run", "digits_mlp_stdb", "--smoke", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "metrics.jsonl: No space left on device; nothing was changed there" in result.output


def _disk_fills_up(after: Path) -> Callable[[int], None]:
    def fsync(_: int) -> None:
        if after.exists():
            raise OSError(28, "No space left on device")

    return fsync


SMOKE = {
    "digits": None,
    "mnist": "MNIST",
    "qr": None,
    "python": None,
    "ldbp": None,
    "aad": None,
    "rules": None,
    "fashion": "FashionMNIST",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "nmnist": "nmnist-small",
}
ALSO = {"digits_on_photographs_unet": ("MNIST", "cifar-10-batches-py")}  # of recipes whose first word does not say it
LARGE = {  # for Lava
    "cifar10_resnet20_light", "cifar10_resnet20_signed", "cifar10_vgg5_stdb", "cifar10_resnet8_stdb", "dvs_gesture_cnn",
    "fashion_mnist_snn_direct", "nmnist_cnn", "shd_rsnn", "digits_cnn_pc", "digits_snn_eprop",
}  # fmt: skip
SIBLINGS = {f"digits_cnn_{rule}" for rule in ("ep", "fa", "dfa", "dtp", "ff")}  # digits_cnn_pc by another rule
SIBLINGS |= {f"cifar10_{n}" for n in ("vgg16_diet", "vgg16_qcfs", "vgg16_stdb", "vgg9_stdb", "resnet20_stdb")}  # vgg5_stdb's,
SIBLINGS |= {"rules_compared", "cifar10_fast_rifle", "ldbp_drift", "ldbp_wdm", "ldbp_phase_noise", "fashion_mnist_cnn_stdb"}
SIBLINGS |= {"fashion_mnist_cnn_qcfs", "fashion_mnist_cnn_diet", "cifar10_fast_signed"}  # and cifar10_fast's methods
SHALLOW = {  # in place of networks of up to 34 million weights, which test-slow runs
    "cifar10_vgg16_stdb": "ann.depth=5",
    "cifar10_vgg16_qcfs": "ann.depth=5",
    "cifar10_vgg16_diet": "ann.depth=5",
    "cifar10_vgg9_stdb": "ann.depth=5",
    "cifar100_vgg11_stdb": "ann.depth=5",
    "cifar10_resnet20_stdb": "ann.depth=8",
    "digits_on_photographs_unet": "ann.widths=[4, 8]",
    **dict.fromkeys(
        (f"cifar10_fast_{kind}" for kind in ("ar", "diet", "graded", "qcfs", "signed", "stdb")), "ann.widths=[4, 8, 8]"
    ),
}
GENERATED = {"dvs": layouts.few_gestures, "shd": layouts.few_spoken_digits}  # sets that are not here, in their layouts
RECIPES = sorted(recipe_folder().glob("*.yaml"))


# test_map_tasks.py has those that need gymnasium
HERE = [f for f in RECIPES if not f.stem.startswith(("imagenet", "map"))]
MARKED = [pytest.param(f, marks=[pytest.mark.slow] if f.stem in SIBLINGS else []) for f in HERE]


@pytest.fixture(scope="module")
def files_read_once() -> Iterator[None]:
    """CIFAR's files take 2 seconds to read, and every stage reads them; tests/data/ reads them as they are."""
    read_files, kept = in_memory._CIFAR.read_files, {}

    def read_once(self: Any, folder: Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        key = (type(self), folder, train)
        if key not in kept:
            kept[key] = read_files(self, folder, train)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_memory._CIFAR, "read_files", read_once)
        yield


@pytest.mark.parametrize("file", MARKED, ids=lambda f: f.stem)
def test_every_recipe_smokes(file: Path, request: pytest.FixtureRequest, tmp_path: Path, files_read_once: None) -> None:
    kind = file.stem.partition("_")[0]
    folder = SMOKE.get(kind) if kind in GENERATED else SMOKE[kind]
    for needed in ALSO.get(file.stem, () if folder is None else (folder,)):
        need(request.getfixturevalue("data_root"), needed)
    shallow = [SHALLOW[file.stem]] if file.stem in SHALLOW else []
    shallow += [f"data.root={GENERATED[kind](tmp_path / 'data')}"] if kind in GENERATED else []
    assert spikeprop("check", file).exit_code == 0
    smoke(file, tmp_path, *shallow, lava=_lava_here() and file.stem not in {*LARGE, *SHALLOW})


@pytest.mark.slow
@pytest.mark.parametrize("file", [f for f in HERE if f.stem in SHALLOW], ids=lambda f: f.stem)
def test_recipes_of_large_networks_smoke_at_full_depth(file: Path, data_root: Path, tmp_path: Path) -> None:
    need(data_root, SMOKE[file.stem.partition("_")[0]] or "")
    smoke(file, tmp_path, lava=False)


@pytest.mark.slow
@pytest.mark.parametrize("file", [f for f in RECIPES if "imagenet" in f.stem], ids=lambda f: f.stem)
def test_imagenet_recipes_smoke_on_photographs(file: Path, data_root: Path, tmp_path: Path) -> None:
    """The sample has no training images, so its validation images stand for both: what is tested is that everything runs."""
    need(data_root, "imagenet-sample")
    for split in ("train", "val"):
        (tmp_path / "data" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / split).symlink_to(data_root / "imagenet-sample" / "val")
    (tmp_path / "data" / "classes.tsv").symlink_to(data_root / "imagenet-sample" / "classes.tsv")
    smoke(file, tmp_path, f"data.root={tmp_path / 'data'}", "data.workers=2", lava=False)


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    """What the README says of ``make demo``: accuracy at few steps, and Lava's spikes equal to PyTorch's."""
    lava_or_skip()
    assert spikeprop("run", "digits_cnn_stdb", "--out", tmp_path / "demo").exit_code == 0
    values = report(tmp_path / "demo")
    best = max(a for t, a in values["finetuned"]["accuracy"].items() if int(t) <= 10)
    assert values["ann"]["accuracy"] >= 97
    assert best >= values["ann"]["accuracy"] - 1
    assert values["simulate"]["samples"] >= 20
    assert values["simulate"]["spikes_equal"]
    assert values["simulate"]["agreement"] == 100
    assert values["simulate"]["chip"]["chips"] == 1


def smoke(file: Path, tmp_path: Path, *overrides: str, lava: bool) -> None:
    experiment = load_recipe(str(file)).experiment
    hybrid = isinstance(experiment, HybridConversion)
    simulate = [] if lava or not hasattr(experiment, "simulate") else ["simulate.samples=0"]
    result = spikeprop("run", file, *overrides, *simulate, "--smoke", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("smoke run, not a result: ")
    assert not re.search(r"\b(paper|published|draft)\b", result.output)  # a smoke run's link or length is none of theirs
    values = report(tmp_path / "run")
    if not hybrid:
        assert isinstance(experiment, ModelParallel) or (tmp_path / "run" / "report.png").exists()
    else:
        assert set(values["converted"]["accuracy"]) == {"2", "4"}
    if simulate == [] and hasattr(experiment, "simulate") and experiment.simulate.samples:
        assert values["simulate"]["spikes_equal"]
        assert values["simulate"]["samples"] == 1


def _lava_here() -> bool:
    from spikeprop_hardware import HardwareError
    from spikeprop_hardware.environment import find_python310

    try:
        find_python310()
    except HardwareError:
        return False
    return True


@pytest.mark.parametrize("arguments", [["check", "digits_cnn_stdb", "train.rule={use: local_rules_of_cli.Plain}"]])
def test_modules_of_the_working_folder_are_found_and_do_not_hide_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    (tmp_path / "local_rules_of_cli.py").write_text("from spikeprop import Backprop\n\n\nclass Plain(Backprop):\n    pass\n")
    (tmp_path / "yaml.py").write_text("raise RuntimeError('hidden')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as the installed command has it
    before = list(sys.path)
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert "digits_cnn_stdb: ok" in result.output
    assert sys.path == before


def test_the_list_of_commands_has_complete_sentences() -> None:
    listed = CliRunner().invoke(main, ["--help"], terminal_width=80).output.split("Commands:")[1].split("Exit codes")[0]
    lines = [line for line in listed.splitlines() if line.strip()]
    assert len(lines) == len(main.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines), listed


def test_diagnose_tells_where_the_conversion_loses(finished: Path) -> None:
    result = spikeprop("diagnose", finished, "--timesteps", "2,4", "--samples", 20)
    assert result.exit_code == 0, result.output
    assert "T = 2: the spiking network predicts as the ANN for" in result.output
    assert "silent channels" in result.output
    found = json.loads(spikeprop("diagnose", finished, "--timesteps", "2", "--samples", 20, "--json").stdout)
    assert found["images"] == 20
    assert 0 <= found["agreement"]["2"] <= 100
    assert {"layer", "own", "clipping", "cause", "advice"} <= found["layers"][0].keys()
    refused = spikeprop("diagnose", finished / "converted.safetensors")
    assert refused.exit_code != 0
    assert "needs the ANN as well" in refused.output
