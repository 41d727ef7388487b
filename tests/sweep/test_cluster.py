"""Sweeps over a cluster: nothing is lost with a node, and a node that lacks something is named."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spikeprop.cli import main
from spikeprop.runtime.locks import Lock
from spikeprop.sweep.cluster import ClusterTrial, check_reachable
from spikeprop.sweep.node import BUSY, ENDED, UNFIT, fingerprint, missing_here, run_trial
from spikeprop.sweep.plan import SweepPlan
from tests.forked import ROOT, Program

QUICK = "use: tests.sweep.quick.Quick\nx: 1.0\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    file = tmp_path / "quick.yaml"
    file.write_text(QUICK)
    return file


def test_sweep_on_ray_is_refused_with_what_is_missing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    command = ["sweep", str(recipe), "x=0.1,0.2", "--out", str(tmp_path / "s")]
    result = CliRunner().invoke(main, [*command, "--on", "ray"])
    assert result.exit_code == 1
    assert "pip install ./hardware '.[ray]'" in result.output
    result = CliRunner().invoke(main, [*command, "--gpus", "1"])
    assert result.exit_code == 2
    assert "add --on ray, or leave it out" in result.output


def test_address_at_which_nobody_answers_is_found_at_once() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ConnectionRefusedError):
            check_reachable(address)
        listening.listen()
        check_reachable(address)
        check_reachable(f"ray://{address}")
    check_reachable("")  # the cluster of this machine


def test_node_names_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeprop.sweep.node.SEEN_AFTER", 0.0)
    mark = tmp_path / "s" / "logs" / "shared-1"
    assert f"does not see the sweep's folder {tmp_path / 's'}" in missing_here(str(mark), str(tmp_path), fingerprint())
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert f"has no folder {tmp_path / 'work'}" in missing_here(str(mark), str(tmp_path / "work"), fingerprint())
    assert "another version" in missing_here(str(mark), str(tmp_path), "of another time")
    assert missing_here(str(mark), str(tmp_path), fingerprint()) == ""
    given: dict[str, Any] = {"folder": "x", "arguments": ["run"], "log": "x", "lock": "x", "threads": 1, "variables": {}}
    assert run_trial(**given, mark=str(mark), here=str(tmp_path), code="of another time")[0] == UNFIT


def test_node_runs_a_trial_and_says_why_it_failed(recipe: Path, tmp_path: Path) -> None:
    mark = tmp_path / "logs" / "shared-1"
    mark.parent.mkdir()
    mark.touch()
    given: dict[str, Any] = {
        "folder": str(tmp_path / "000"), "arguments": ["run", str(recipe), "--out", str(tmp_path / "000")],
        "log": str(tmp_path / "log"), "lock": str(tmp_path / "logs" / "000.lock"), "threads": 1,
        "mark": str(mark), "here": str(ROOT), "code": fingerprint(), "variables": {"QUICK_LACKS": "photographs"},
    }  # fmt: skip
    assert run_trial(**given) == (ENDED, 1, "no photographs on this machine")
    lock = Lock(tmp_path / "logs" / "000.lock")
    assert lock.acquire()  # of another process
    assert run_trial(**given) == (BUSY, 1, "")
    lock.release()


class Lost(Exception):
    """Stands for Ray's own errors."""


class Nodes:
    """Two nodes, and what becomes of each start of a trial, in order."""

    def __init__(self, *results: Any):
        self.results, self.starts = results, list[tuple[str, ...]]()
        self.ray, self.exceptions, self.RayError = self, self, Lost
        self.plan, self.notify = SweepPlan(recipe="quick", axes=(), retries=2), lambda _: None

    def submit(self, given: Any, avoided: Any) -> int:
        self.starts.append(tuple(sorted(avoided)))
        return len(self.starts) - 1

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return references, []

    def get(self, reference: int) -> Any:
        if isinstance(self.results[reference], Lost):
            raise self.results[reference]
        return self.results[reference]

    def roomy(self, avoided: Any) -> bool:
        return len(avoided) < 2

    def leave_out(self, node: str, why: str) -> None:
        assert (node, why) == ("a", "no folder")

    def name(self, node: str) -> str:
        return node


GOOD, FAILED = ("b", ENDED, 0, ""), ("a", ENDED, 1, "no photographs")


@pytest.mark.parametrize(
    ("results", "code", "why", "starts"),
    [
        ([GOOD], 0, "", [()]),
        ([Lost("node died"), ("a", ENDED, -9, "killed"), GOOD], 0, "", [(), (), ()]),
        ([Lost("node died"), ("a", ENDED, 130, "stopped"), Lost("node died")], 1, "was started 3 times", [(), (), ()]),
        ([("a", BUSY, 1, ""), GOOD], 0, "", [(), ()]),
        ([("a", UNFIT, 1, "no folder"), GOOD], 0, "", [(), ()]),
        ([FAILED, Lost("node died"), GOOD], 0, "", [(), ("a",), ("a",)]),
        ([FAILED, ("b", ENDED, 1, "too large")], 1, r"no photographs \(on a\); too large \(on b\)", [(), ("a",)]),
    ],
)
def test_trial_is_started_again_as_often_as_it_is_lost_and_never_where_it_failed(
    results: list[Any], code: int, why: str, starts: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spikeprop.sweep.cluster.BUSY_SECONDS", 0.0)
    (tmp_path / "report.json").touch()
    nodes: Any = Nodes(*results)
    trial = ClusterTrial(nodes, tmp_path, {})
    trial.start()
    looks = iter(range(100))
    while (found := trial.ended()) is None:
        assert next(looks, None) is not None
        time.sleep(0.001)
    assert (found, nodes.starts) == (code, starts)
    assert found == 0 or re.search(why, trial.reason(found))


# a cluster ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of one node, which can be given more."""
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else 15, beside other work for minutes
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "hardware"), os.environ.get("PYTHONPATH", "")]))
    started = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    started.shutdown()


NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def trials(folder: Path) -> dict[str, dict[str, Any]]:
    return {trial["name"]: trial for trial in json.loads((folder / "sweep.json").read_text())["trials"]}


def holder(run: Path) -> int:
    """The process that works in a run folder."""
    return int(json.loads((run / ".lock").read_text())["pid"])


def on_second_node(process: int) -> bool:
    return b"QUICK_NODE=2" in Path(f"/proc/{process}/environ").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the node of a trial in /proc")
def test_eight_trials_on_two_nodes_survive_a_killed_trial_and_a_lost_node(cluster: Any, recipe: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "lacking"
    (lacking / "spikeprop").mkdir(parents=True)
    (lacking / "spikeprop" / "__init__.py").touch()
    second = cluster.add_node(**NODE, env_vars={"QUICK_NODE": "2"})
    cluster.add_node(**NODE, env_vars={"PYTHONPATH": str(lacking)})
    folder = tmp_path / "s"
    values = "0.0,0.1,0.2,0.3,0.4,0.5,0.6,0.7"
    command = ["sweep", recipe, f"x={values}", "seconds=8", "--metric", "value", "--out", folder, "--on", "ray"]
    with Program(None, command, tmp_path / "log") as sweep:
        killed, lost = False, False
        while not (killed and lost):
            assert sweep.poll() is None, sweep.output
            for run in sorted(folder.glob("0*")):
                if not (run / "starts.txt").exists() or (run / "report.json").exists():
                    continue
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    second_has_it = on_second_node(process := holder(run))
                    if second_has_it and not lost:
                        lost = True
                        cluster.remove_node(second, allow_graceful=False)
                    elif not second_has_it and not killed:
                        os.kill(process, signal.SIGKILL)
                        killed = True
            time.sleep(0.2)
        assert sweep.ended(600) == 0, sweep.output
    found = trials(folder)
    assert [trial["state"] for trial in found.values()] == ["finished"] * 8, sweep.output
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [float(row["metric"]) for row in rows] == [
        pytest.approx(1 - (float(x) - 0.3) ** 2, abs=1e-5) for x in values.split(",")
    ]
    assert "it starts again (1 of 2)" in sweep.output
    assert "killed by SIGKILL" in sweep.output
    assert "its worker was lost" in sweep.output or "exit code" in sweep.output
    assert "its Python cannot import spikeprop" in sweep.output
    assert not list((folder / "logs").glob("shared-*"))

    starts = {name: (folder / name / "starts.txt").read_text() for name in found}
    with Program(None, command, tmp_path / "again") as again:  # everything is there
        assert again.ended() == 0, again.output
        assert "its worker was lost" not in again.output
    assert {name: (folder / name / "starts.txt").read_text() for name in found} == starts


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_trial_whose_data_are_missing_on_a_node_runs_on_another(cluster: Any, recipe: Path, tmp_path: Path) -> None:
    cluster.add_node(**{**NODE, "num_cpus": 2}, env_vars={"QUICK_LACKS": "photographs"})
    folder = tmp_path / "s"
    command = ["sweep", recipe, "x=0.1,0.2,-1", "--metric", "value", "--out", folder, "--on", "ray"]
    with Program(None, command, tmp_path / "log") as sweep:
        assert sweep.ended(500) == 1, sweep.output
    states = [trial["state"] for trial in trials(folder).values()]
    assert states == ["finished", "finished", "failed"], sweep.output
    assert "no photographs on this machine (on " in sweep.output
    assert "it starts again on another node" in sweep.output
    assert "x is -1.0; it must not be negative (on " in trials(folder)["002-x=-1"]["why"]

    result = CliRunner().invoke(
        main, ["sweep", str(recipe), "x=1,2", "--on", "ray", "--threads", "64", "--out", str(tmp_path / "t")]
    )
    assert "no node of the cluster has 64 CPUs; they have 1 CPUs, 2 CPUs" in result.output
