"""A few of the faults of `make faults`, in one run."""

from __future__ import annotations

import random
import re
import signal
from functools import partial
from pathlib import Path

import pytest

from spikeprop.runtime.files import previous_of
from tests.faults import cases
from tests.faults.runs import Fault


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> cases.Suite:
    return cases.Suite(tmp_path_factory.mktemp("faults"))


def test_run_with_faults_gives_the_result_of_an_undisturbed_run(suite: cases.Suite) -> None:
    run = suite.fresh("chain")
    codes = [suite.after_a_while(run, signal.SIGKILL, 0.3) for _ in range(3)]
    assert codes == [-signal.SIGKILL] * 3, "the kills came too late to mean anything"
    stopped = suite.after_a_while(run, signal.SIGTERM, 0.2)
    assert stopped in (143, None)
    if stopped is not None:
        assert "go on with: spikeprop run digits_cnn_stdb" in run.said()
    files = sorted(run.folder.glob("[!.]*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
    files = [p for p in files if ".progress." not in p.name or previous_of(p).exists()]  # else the run rightly stops
    damage = cases.corrupt(files[-1], random.Random(0), truncate=False)
    assert run.finish(Fault(prepare=partial(cases.no_space_after, 9))) == 1
    assert files[-1].name in run.said(), damage
    left = r"(?:nothing was changed there|the existing file is now (\S+))"
    told = re.search(rf"cannot write (\S+): No space left on device; {left}", run.said())
    assert told, run.said()
    assert told[2] is None or (Path(told[2]).exists() and not Path(told[1]).exists())
    suite.check(run)


def test_unwritable_folder_is_named_before_training(suite: cases.Suite) -> None:
    assert cases.read_only(suite, 1) == 1
