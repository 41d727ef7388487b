"""Processes of the tests, forked from a server that has imported what each would: a fresh Python takes 5 seconds to train.

They are processes of their own, with their own signals, environment, folder and output, and run the code of a command line.
What they do not test is how Python starts and ends. The server starts with the first of them, one in each pytest process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

ROOT = Path(__file__).parents[1]
MODULES = [
    "spikeprop.cli", "spikeprop.experiment.pipeline", "spikeprop.plugins", "matplotlib.figure", "sklearn.datasets", "pytest",
    "tests.faults.warm", "tests.faults.runs", "tests.forked",
]  # fmt: skip
ALLOWED_SECONDS = 300.0


def forkserver() -> Any:
    """The context of multiprocessing whose processes are forked from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context


def spawn(work: Callable[..., None], arguments: tuple[Any, ...], nprocs: int) -> None:
    """``torch.multiprocessing.spawn`` with forked processes: ``work(rank, *arguments)`` in each; the error of one ends all."""
    forkserver()
    torch.multiprocessing.start_processes(work, arguments, nprocs, start_method="forkserver")


def output_to(log: Path) -> None:
    """From here on this process writes its output to a file."""
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    multiprocessing.set_start_method("fork", force=True)  # the default, which the children of the server do not inherit


class Program:
    """A process with what tests use of ``subprocess.Popen``; its output goes to a file.

    Args:
        program: code of a program, or None for ``python -m spikeprop``.
        arguments: of the command line.
        log: file for its output.
        folder: where it runs.
        variables: environment variables beside those of the caller.
    """

    def __init__(
        self,
        program: str | None,
        arguments: Sequence[Any],
        log: Path,
        folder: Path = ROOT,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        environment = {**os.environ, **(variables or {})}
        threads = int(environment.get("OMP_NUM_THREADS", torch.get_num_threads()))
        given = (program, [str(a) for a in arguments], log.absolute(), folder, environment, threads)
        self.process = forkserver().Process(target=_run, args=given)
        self.process.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.join()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal that ended it; None while it runs."""
        return self.process.exitcode

    def ended(self, seconds: float = ALLOWED_SECONDS) -> int:
        """Wait until it ends; its exit code.

        Raises:
            AssertionError: it runs for longer, and was ended.
        """
        self.process.join(seconds)
        if self.process.is_alive():
            self.kill()
            raise AssertionError(f"the process hangs for more than {seconds:.0f} s: {self.output}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def until(self, happened: Callable[[], bool], seconds: float = ALLOWED_SECONDS) -> None:
        """Wait for something that it does.

        Raises:
            AssertionError: it ended before, or did not do it in this time.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def ranks(
    count: int, program: str | None, arguments: Sequence[Any], log: Path, variables: Mapping[str, str] | None = None
) -> list[Program]:
    """Processes that find the variables which torchrun sets; their logs are ``log`` with the rank as its suffix."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", **(variables or {})}
    return [
        Program(program, arguments, log.with_suffix(f".{rank}"), variables={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


def _run(program: str | None, arguments: list[str], log: Path, folder: Path, environment: dict[str, str], threads: int) -> None:
    """In the new process."""
    output_to(log)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(threads)
    sys.argv = ["spikeprop" if program is None else "-c", *arguments]
    if program is None:
        runpy.run_module("spikeprop", run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, "")
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
