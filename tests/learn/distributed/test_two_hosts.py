"""torchrun over two hosts (network namespaces): when one is cut off, the other goes on, and the one says why it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import ROOT

SHORT = ("train.epochs=8", "finetune.epochs=1", "evaluate.timesteps=[4]", "simulate.samples=0")
ADDRESSES = ("10.231.7.1", "10.231.7.2")
PATIENCE = 12  # seconds


class Hosts:
    """Two namespaces joined by a cable, each with an address of its own."""

    def __init__(self) -> None:
        self.names = [f"spikeprop-{os.getpid()}-{i}" for i in range(2)]
        self.cables = [f"sp{os.getpid() % 100000}v{i}" for i in range(2)]

    def connect(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
        for name, cable, address in zip(self.names, self.cables, ADDRESSES):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def cut(self) -> None:
        """The cable is pulled: nothing arrives any more, and nobody is told."""
        ip("-n", self.names[1], "link", "set", self.cables[1], "down")

    def join(self) -> None:
        """The cable is there again."""
        ip("-n", self.names[1], "link", "set", self.cables[1], "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def torchrun(self, host: int, folder: Path, log: Path) -> subprocess.Popen[bytes]:
        """The command of a guide, on one host."""
        settings = f"is_host={1 - host},last_call_timeout=5,join_timeout=60,read_timeout=20,keep_alive_interval=1"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3"]
        torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29517", "--rdzv-id=two", f"--rdzv-conf={settings}"]
        torchrun += [f"--local-addr={ADDRESSES[host]}", "-m", "spikeprop", "run", "digits_cnn_stdb", *SHORT, "--out", str(folder)]
        variables = {"OMP_NUM_THREADS": "1", "SPIKEPROP_PATIENCE": str(PATIENCE), "GLOO_SOCKET_IFNAME": self.cables[host]}
        with open(log, "wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], *torchrun], cwd=ROOT, env={**os.environ, **variables}, stdout=file,
                stderr=file,
            )  # fmt: skip


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    made = Hosts()
    try:
        made.connect()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    yield made
    made.remove()


def until_lines(file: Path, count: int, runs: list[subprocess.Popen[bytes]], logs: list[Path]) -> None:
    deadline = time.monotonic() + 400
    while not (file.exists() and len(file.read_text().splitlines()) >= count):
        assert time.monotonic() < deadline
        assert all(run.poll() is None for run in runs), "\n".join(log.read_text() for log in logs)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_when_a_host_is_cut_off_the_other_completes_the_run(hosts: Hosts, tmp_path: Path) -> None:
    folder, logs = tmp_path / "run", [tmp_path / f"host{i}.log" for i in range(2)]
    runs = [hosts.torchrun(i, folder, logs[i]) for i in range(2)]
    try:
        until_lines(folder / "metrics.jsonl", 2, runs, logs)
        assert json.loads((folder / "run.json").read_text())["processes"] == 2
        hosts.cut()
        codes = [runs[0].wait(900)]
        hosts.join()  # torchrun itself waits for the other host, until the connection is refused
        codes.append(runs[1].wait(300))
    finally:
        for run in runs:
            run.kill()
    told = [log.read_text() for log in logs]
    assert codes[0] == 0, told[0]
    assert codes[1] != 0, told[1]
    assert "rank 0: rank 1 (process " in told[0]
    assert f"has given no sign of life for {PATIENCE} s" in told[0]
    assert f"the process that holds the group's store has not answered for {PATIENCE} s" in told[1]
    stages = json.loads((folder / "stages.json").read_text())
    assert [one["epoch"] for one in stages["ann"]["result"]["history"]] == list(range(8))
    report = json.loads((folder / "report.json").read_text())
    assert report["ann"]["accuracy"] > 90
    assert [session.get("processes", 1) for session in report["provenance"]["sessions"]] == [1]
