"""The command line as a person meets it: words, examples, JSON, quiet, colours, completion, pipes; and a newcomer's mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import click
import pytest
import torch
import yaml
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

from spikeprop.cli import main, printing
from spikeprop.cli.completing import leaves
from spikeprop.cli.group import REMEDIES
from spikeprop.convert import ThresholdCalibrator
from spikeprop.experiment import HybridConversion, SpikingTraining
from spikeprop.recipe import components, load_recipe, purposes
from spikeprop.runtime import progress
from spikeprop.snn import Neuron

DOORS = {"trained": HybridConversion, "train": HybridConversion, "finetune": HybridConversion, "scratch": SpikingTraining}


def spikeprop(*arguments: Any, **more: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="spikeprop", **more)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a newcomer's files, and no data."""
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "tabs.yaml").write_text("data: Digits\n\tann: CNN\n")
    (tmp_path / "here").mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "best.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKEPROP_DATA", str(tmp_path / "no_data"))
    return tmp_path


MISTAKES = [  # command, exit code, what the message says
    ("rum digits_cnn_stdb", 2, "Did you mean 'run'"),
    ("run", 2, "Missing argument 'RECIPE'"),
    ("run digit_cnn_stdb", 1, "did you mean 'digits_cnn_stdb'"),
    ("run nothing_of_this_name_at_all.yaml", 1, "'spikeprop ls' lists them, 'spikeprop new' writes one"),
    ("run here", 1, "here is a folder; give a recipe's file"),
    ("run text", 1, "a recipe's file ends in .yaml"),
    ("run best.pt", 1, "weights in it belong in a recipe's"),
    ("run empty.yaml", 1, "must hold a mapping of settings, such as 'data: Digits'"),
    ("run tabs.yaml", 1, "indent with spaces"),
    ("run digits_cnn_stdb finetune.lr 1e-4", 1, "override 'finetune.lr': write it as path.to.key=value"),
    ("run digits_cnn_stdb --finetune.lr=1e-4", 2, "a recipe's setting has no dashes: finetune.lr=VALUE"),
    ("run digits_cnn_stdb ann.hidden=64 sed=1", 1, "it should be a list, as in [1, 2]"),
    ("run digits_cnn_stdb device=gpu", 1, "use auto, cpu, cuda or cuda:1"),
    ("run digits_cnn_stdb ann.use=my_net.Net", 1, "put my_net.py into this folder, or install"),
    ("run digits_mlp_stdb --smoke --out text", 1, "use another --out folder"),
    ("run digits_mlp_stdb --smoke --out /proc/nowhere", 1, "use another --out folder"),
    ("run digits_cnn_stdb --threads two", 2, "'two' is not a valid integer"),
    ("eval nowhere", 1, "no checkpoint at nowhere; give a run folder"),
    ("eval her", 1, "; did you mean 'here'?"),
    ("finetune her", 1, "; did you mean 'here'?"),
    ("eval here", 1, "`spikeprop ls runs` lists those"),
    ("eval best.pt", 1, "a checkpoint is one of the .safetensors files in a run folder"),
    ("eval here --timesteps ten", 2, "whole numbers, for example 25,50,100"),
    ("export nowhere", 1, "give a run folder"),
    ("simulate text", 1, "not a safetensors file"),
    ("budget here", 1, "`spikeprop ls runs` lists those"),
    ("report here", 1, "give a folder that `spikeprop run` wrote"),
    ("diagnose here", 1, "`spikeprop ls runs` lists those"),
    ("ls neuorns", 2, "did you mean 'neurons'"),
    ("ls runs nowhere", 1, "give the one in which the run folders are"),
    ("explain nowhere:net", 1, "write it as module:callable"),
    ("explain json:loads", 1, "of a callable without arguments"),
    ("sweep digits_cnn_stdb seed", 1, "write it as path.to.key=value,value"),
    ("sweep digits_cnn_stdb sed=1,2", 1, "did you mean 'seed'"),
    ("check digits_cnn_stdb sed=1 train.lr=fast", 1, "2 mistakes:"),
    ("convert mynet.py:MyNet", 1, "Give --root FOLDER"),
    ("convert best.pt", 1, "name its class, and the file as --weights: spikeprop convert mynet.py:MyNet --weights best.pt"),
    ("convert mynet.py:MyNet --data Digits --weights nowhere.pt", 1, "there is no file mynet.py (looked for in"),
    ("finetune here", 1, "give a folder that `spikeprop run` wrote"),
    ("eval zoo:nothing", 1, "'spikeprop ls zoo' shows all"),
    ("zoo add here x", 1, "give a folder that `spikeprop run` wrote"),
    ("new mine --for dor", 2, "is not one of 'trained'"),
    ("new text.yaml --for scratch", 0, "next: spikeprop check text.yaml"),
    ("new empty", 1, "choose another name, or replace it: --force"),
    ("new /proc/mine", 1, "check the path"),
]


def test_every_mistake_of_a_newcomer_is_answered_with_its_remedy(folder: Path) -> None:
    for command, code, says in MISTAKES:
        result = spikeprop(*command.split())
        assert says in " ".join(result.output.split()), f"{command}: {result.output}"
        assert result.exit_code == code, command
        assert result.exception is None or isinstance(result.exception, SystemExit), f"{command}: a traceback"
        assert len(result.output) < 900, f"{command}: {len(result.output)} characters"
    assert not (folder / "runs").exists()


def test_data_that_are_not_there_are_named_with_what_to_type(folder: Path) -> None:
    result = spikeprop("run", "digits_mlp_stdb", "--smoke", "data=MNIST", "ann.input_shape=[1,28,28]")
    assert result.exit_code == 1
    assert "data.download=true" in result.output
    assert isinstance(result.exception, SystemExit)


def test_errors_of_the_system_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = URLError("no route to host")
    for number, remedy in [*REMEDIES.items(), (None, "check the connection, or copy the file here and give its path")]:

        def fail(*_: Any, number: int | None = number) -> None:
            raise refused if number is None else OSError(number, os.strerror(number), "some/file")

        monkeypatch.setattr("spikeprop.recipe.load_recipe", fail)
        result = spikeprop("check", "digits_cnn_stdb")
        assert result.exit_code == 1
        cause = str(refused) if number is None else f"some/file: {os.strerror(number)}"
        assert f"Error: {cause}; {remedy}" in result.output


def test_an_interrupt_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spikeprop.recipe.load_recipe", stop)
    result = spikeprop("check", "digits_cnn_stdb")
    assert result.exit_code == 130
    assert "the same command begins again, or continues what is saved" in result.output


# help -------------------------------------------------------------------------------------------------------------------------


def verbs() -> dict[str, click.Command]:
    return dict(main.commands)


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_every_verb_has_an_example_that_it_can_parse_and_the_shared_options(verb: str) -> None:
    shown = spikeprop(verb, "--help").output
    assert "--json" in shown
    assert "--quiet" in shown
    example = re.search(r"Example:\n +(spikeprop .*)", shown)
    assert example, f"{verb} has no example"
    program, name, *arguments = example[1].split()
    assert (program, name) == ("spikeprop", verb)
    verbs()[verb].make_context(verb, list(arguments)).close()


def test_the_version_is_there_at_once_and_without_torch() -> None:
    program = "import sys, resource; from spikeprop.cli import main\n" \
        "try: main(['-V'], prog_name='spikeprop')\nexcept SystemExit: pass\n" \
        "print('torch' in sys.modules, resource.getrusage(resource.RUSAGE_SELF).ru_utime)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    version, rest = done.stdout.splitlines()
    loaded, seconds = rest.split()
    assert re.fullmatch(r"spikeprop, version \d+\.\d+\.\d+", version)
    assert loaded == "False"
    assert float(seconds) < 0.5


def test_a_name_that_is_not_there_is_found_without_torch(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    lines = (
        "eval mien", "budget mien", "finetune mien", "report mien", "convert mynet.py:MyNet --data Digits",
        "run digit_cnn_stdb", "check digit_cnn_stdb", "sweep digit_cnn_stdb seed=1,2",
    )  # fmt: skip
    program = "import sys; from spikeprop.cli import main\n" \
        f"for line in {lines}:\n try: main(line.split(), prog_name='spikeprop')\n" \
        " except SystemExit as end: assert end.code == 1\n" \
        "assert 'torch' not in sys.modules"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("did you mean 'mine'?") == 4
    assert "there is no file mynet.py" in done.stderr
    assert done.stderr.count("did you mean 'digits_cnn_stdb'?") == 3


def test_the_zoo_is_listed_without_torch() -> None:
    program = "import sys; from spikeprop.cli import main\n" \
        "try: main(['ls', 'zoo'], prog_name='spikeprop')\nfinally: assert 'torch' not in sys.modules"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "digits-cnn-stdb" in done.stdout


def test_names_of_the_package_are_imported_when_they_are_used() -> None:
    program = (
        "import sys, spikeprop as sp; assert 'torch' not in sys.modules; first = sp.convert; import spikeprop.convert.graph\n"
        "assert callable(sp.convert) and sp.convert is first; from spikeprop import convert; assert convert is first\n"
        "assert all(getattr(sp, name) is not None for name in {*sp.__all__} - {*sp._LAZY}) and sp.snn.IF is sp.IF\n"
        "try: sp.nothing\nexcept AttributeError: print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


# output -----------------------------------------------------------------------------------------------------------------------


def test_json_is_one_document_of_results_and_errors() -> None:
    listed = json.loads(spikeprop("ls", "--json").stdout)
    names = [recipe["name"] for recipe in listed["recipes"]]
    assert "digits_cnn_stdb" in names
    assert all(recipe["description"] for recipe in listed["recipes"])
    checked = spikeprop("check", "digits_mlp_stdb", "digits_snn_direct", "--json")
    assert [one["recipe"] for one in json.loads(checked.stdout)["checked"]] == ["digits_mlp_stdb", "digits_snn_direct"]
    failed = spikeprop("check", "digits_mlp_stdb", "seed=x", "--json")
    assert "seed: 'x' is not valid" in json.loads(failed.stdout)["error"]
    assert "Error: seed" in failed.stderr
    slots = json.loads(spikeprop("ls", "calibrators", "--json").stdout)["slots"]
    assert {"name", "for", "settings"} == set(slots[0]["components"][0])


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    printing.begin(as_json=True)
    printing.result(value=float("nan"), file=Path("a"), rows=[(1, 2.5)])
    printing.write("a table")
    printing.end()
    assert json.loads(capsys.readouterr().out) == {"value": None, "file": "a", "rows": [[1, 2.5]]}


def test_quiet_leaves_warnings_errors_and_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    printing.begin(quiet=True)
    try:
        printing.say("stage ann")
        printing.say("warning: careful")
        printing.write("the result")
        assert not progress._wanted
    finally:
        printing.begin()
    assert progress._wanted
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("the result\n", "warning: careful\n")
    assert "ok" in spikeprop("check", "digits_mlp_stdb", "-q").stdout


def test_colours_are_for_terminals_and_not_with_no_color() -> None:
    coloured = spikeprop("check", "nothing", color=True)
    assert "\x1b[" in coloured.output
    assert "\x1b[" not in spikeprop("check", "nothing").output
    assert "\x1b[" not in spikeprop("check", "nothing", color=True, env={"NO_COLOR": "1"}).output
    assert "\x1b[" not in spikeprop("ls", color=True, env={"NO_COLOR": "1"}).output


def test_a_reader_that_stops_reading_is_no_error() -> None:
    started = subprocess.Popen([sys.executable, "-m", "spikeprop", "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()  # before anything is written
    assert started.stderr.read() == b""
    started.stderr.close()
    assert started.wait() in (0, 1)


def test_progress_is_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.bar("train", total=2) as shown:
        shown.update(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.bar("train", total=2) as shown:
        shown.update(2)
    assert "train" in capsys.readouterr().err


# words ------------------------------------------------------------------------------------------------------------------------


def test_neurons_and_calibrators_say_what_they_are_for() -> None:
    for base in (Neuron, ThresholdCalibrator):
        for name, words in purposes(base).items():
            assert words.startswith("For "), f"{name}: {words}"
            assert len(words) < 260, name
    assert set(purposes(Neuron)) == set(components(Neuron))
    shown = spikeprop("ls", "neuron").output
    assert "For conversion in few steps, and fine-tuning" in shown
    assert "ThresholdBalancing" not in shown


@pytest.mark.parametrize("door", DOORS)
def test_new_writes_a_recipe_that_is_checked_and_commented(door: str, folder: Path) -> None:
    result = spikeprop("new", "mine", "--for", door)
    assert result.exit_code == 0, result.output
    text = (folder / "mine.yaml").read_text()
    assert text.startswith("# spikeprop run mine.yaml\n")
    assert sum("#" in line for line in text.splitlines()) > 10
    assert set(yaml.safe_load(text)) >= {"data", "seed", "evaluate", "simulate"}
    own = ["data=Digits", "ann={use: MLP, input_shape: [1, 8, 8], hidden: [8], classes: 10}", "train.epochs=0"]
    recipe = load_recipe("mine.yaml", own if door == "trained" else [])
    assert type(recipe.experiment) is DOORS[door]
    recipe.experiment.check()
    if door == "trained":
        (folder / "mynet.py").write_text("from torch import nn\n\n\nclass MyNet(nn.Sequential):\n    pass\n")
        assert load_recipe("mine.yaml").experiment.train.epochs == 0  # since it names weights


# completion -------------------------------------------------------------------------------------------------------------------


def completed(*words: str) -> Iterator[str]:
    found = BashComplete(main, {}, "spikeprop", "_SPIKEPROP_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return (item.value for item in found)


def test_verbs_recipes_settings_and_slots_are_completed(folder: Path) -> None:
    assert {"run", "report"} <= set(completed("r"))
    assert {"digits_cnn_stdb", "digits_graded"} <= set(completed("run", "digits_"))
    assert {"empty.yaml", "here/"} <= set(completed("run", ""))
    assert list(completed("run", "digits_cnn_stdb", "finetune.l")) == ["finetune.lr="]
    assert "convert.neuron.surrogate.alpha=" in completed("check", "digits_cnn_stdb", "convert.neuron")
    assert "finetune.epochs=" in completed("sweep", "digits_cnn_stdb", "finetune.")
    assert list(completed("run", "no_such_recipe", "")) == []
    assert list(completed("ls", "cali")) == ["calibrators"]
    assert "converted" in completed("eval", "--network", "c")
    for key, _ in leaves(load_recipe("digits_cnn_stdb").describe()):
        assert key == "use" or key.partition(".")[0] in HybridConversion.__dataclass_fields__


def test_completion_is_quick_and_prints_the_script_of_the_shell() -> None:
    environment = {
        **os.environ,
        "_SPIKEPROP_COMPLETE": "bash_complete",
        "COMP_WORDS": "spikeprop run digits_g",
        "COMP_CWORD": "2",
    }
    program = "import sys, spikeprop.cli as c\ntry: c.main(prog_name='spikeprop')\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,digits_graded"], done.stderr
