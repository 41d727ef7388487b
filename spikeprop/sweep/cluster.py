"""``Cluster``: the nodes of a running Ray cluster as the place where a sweep's trials run.

Ray chooses a node with enough free CPUs and GPUs; the node runs the trial as a process, with the sweep's folder on a file system
that all nodes share. A trial that is lost (its worker or node died, or it was killed) starts again and resumes from its
checkpoint; one that failed starts again on a node where it has not failed, if there is one. A node that lacks what a trial
needs is left out, and named.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprop.errors import RunError
from spikeprop.runtime.locks import Lock, in_use
from spikeprop.sweep.node import BUSY, UNFIT, fingerprint
from spikeprop.sweep.plan import SweepPlan
from spikeprop.sweep.process import GRACE

BUSY_SECONDS = 5.0  # until a trial at which another process works is tried again
LOOK_SECONDS = 5.0  # between two looks at the nodes for a trial that waits
NO_ROOM_SECONDS = 60.0  # without a node that could take a trial
VISIBLE_SECONDS = 90.0  # until a file that another machine wrote is visible on a network file system
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}  # exit codes of a trial that was told to stop
REACHED_SECONDS = 5.0  # within which the cluster's address answers
NODE_LABEL = "ray.io/node-id"
NEVER = float("inf")


class Cluster:
    """A running Ray cluster.

    Args:
        plan: of the sweep; its threads are the CPUs of a trial.
        folder: of the sweep, on a file system that all nodes share.
        notify: called with messages for people.

    Raises:
        RunError: Ray is not installed, no cluster is found, or no node is large enough for a trial.
    """

    def __init__(self, plan: SweepPlan, folder: Path, notify: Callable[[str], None]):
        self.plan, self.notify = plan, notify
        self.threads = plan.threads or 1
        self.unfit: dict[str, str] = {}
        self.ray = _connect()
        self._work = self.ray.remote(_task())
        self._mark = folder.resolve() / "logs" / f"shared-{secrets.token_hex(8)}"
        try:
            if not self.roomy():
                raise RunError(f"no node of the cluster has {self._needed}; they have {self._sizes()}. Lower --threads or --gpus")
        except RunError:
            self.ray.shutdown()
            raise
        self.jobs = plan.jobs or self._fitting()
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        gpus = sum(node["Resources"].get("GPU", 0) for node in self._nodes().values())
        if gpus and not plan.gpus:
            notify(f"warning: the cluster has {gpus:g} GPUs, and trials use none; --gpus 1 gives one to each")
        notify(f"Ray's nodes: {self._sizes()}; trials at a time: {self.jobs}")

    def trial(self, folder: Path, arguments: Sequence[str], log: Path, lock: Lock) -> ClusterTrial:
        """A trial to start."""
        files = {"folder": str(folder.resolve()), "log": str(log.resolve()), "lock": str(lock.path.resolve())}
        return ClusterTrial(self, folder, {**files, "arguments": list(arguments), "threads": self.threads, **self._common()})

    def _common(self) -> dict[str, Any]:
        """What is the same for all trials."""
        ours = {key: value for key, value in os.environ.items() if key.startswith("SPIKEPROP_")}
        return {"mark": str(self._mark), "here": str(Path.cwd()), "code": fingerprint(), "variables": ours}

    def submit(self, given: Mapping[str, Any], avoided: Collection[str]) -> Any:
        """Start a trial on a node other than the avoided ones; returns Ray's reference to its result."""
        away = sorted({*avoided, *self.unfit})
        where = {"label_selector": {NODE_LABEL: f"!in({','.join(away)})"}} if away else {}
        work = self._work.options(num_cpus=self.threads, num_gpus=self.plan.gpus, max_retries=0, **where)
        return work.remote(dict(given))

    def leave_out(self, node: str, why: str) -> None:
        """No further trial starts on this node."""
        if node not in self.unfit:
            self.unfit[node] = f"node {self.name(node)}: {why}"
            self.notify(f"warning: no trial runs on {self.unfit[node]}")

    def roomy(self, avoided: Collection[str] = ()) -> bool:
        """Whether a node other than the avoided ones is large enough for a trial."""
        return any(
            node["Resources"].get("CPU", 0) >= self.threads and node["Resources"].get("GPU", 0) >= self.plan.gpus
            for name, node in self._nodes().items()
            if name not in avoided and name not in self.unfit
        )

    def no_room(self) -> str:
        """Why no node can take a trial."""
        return "; ".join(self.unfit.values()) or f"no node of the cluster has {self._needed} any more; add one"

    def name(self, node: str) -> str:
        """Host and address of a node."""
        found = next((one for one in self.ray.nodes() if one["NodeID"] == node), None)
        return f"{found['NodeManagerHostname']} ({found['NodeManagerAddress']}, {node[:8]})" if found else node[:8]

    def close(self) -> None:
        """Leave the cluster, which runs on."""
        self._mark.unlink(missing_ok=True)
        self.ray.shutdown()

    @property
    def _needed(self) -> str:
        return f"{self.threads} CPUs" + (f" and {self.plan.gpus:g} GPUs" if self.plan.gpus else "")

    def _nodes(self) -> dict[str, dict[str, Any]]:
        return {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}

    def _sizes(self) -> str:
        sizes = sorted((node["Resources"] for node in self._nodes().values()), key=lambda size: size.get("CPU", 0))
        return ", ".join(
            f"{size.get('CPU', 0):g} CPUs" + (f" and {size['GPU']:g} GPUs" if size.get("GPU") else "") for size in sizes
        )

    def _fitting(self) -> int:
        """How many trials fit on the nodes at the same time."""
        sizes = [node["Resources"] for node in self._nodes().values()]
        gpus = self.plan.gpus
        return sum(
            int(min(size.get("CPU", 0) // self.threads, size.get("GPU", 0) // gpus if gpus else float("inf"))) for size in sizes
        )


class ClusterTrial:
    """A trial on some node, started again where it was lost.

    Args:
        cluster: where it runs.
        folder: its run folder.
        given: arguments of ``run_trial``.
    """

    def __init__(self, cluster: Cluster, folder: Path, given: Mapping[str, Any]):
        self.cluster, self.folder, self.given = cluster, folder, given
        self._result: Any = None  # Ray's reference to it; None while nothing of this trial is at a node
        self._lost_times, self._failed_on = 0, set[str]()
        self._why, self._code = "", 1
        self._next_look, self._again_at, self._report_until, self._room_until = 0.0, NEVER, NEVER, NEVER

    def start(self) -> bool:
        """Hand it to the cluster."""
        self._result = self.cluster.submit(self.given, self._failed_on)
        self._next_look, self._again_at, self._room_until = time.monotonic() + LOOK_SECONDS, NEVER, NEVER
        return True

    def ended(self) -> int | None:
        """Its exit code, or None while it runs, waits for a node, or starts again."""
        now = time.monotonic()
        if self._report_until < NEVER:
            return 0 if (self.folder / "report.json").exists() or now > self._report_until else None
        if self._result is None:
            if now > self._again_at:
                self.start()
            return None
        if not self.cluster.ray.wait([self._result], timeout=0)[0]:
            return self._without_room(now)
        try:
            node, kind, code, why = self.cluster.ray.get(self._result)
        except self.cluster.ray.exceptions.RayError as error:
            said = " ".join(str(error).split()).partition(". ")[0]
            return self._lost(f"its worker was lost ({said or type(error).__name__})")
        self._result = None
        if kind == UNFIT:
            self.cluster.leave_out(node, why)
            return self._start_again() if self.cluster.roomy(self._failed_on) else self._fail(self._why or self.cluster.no_room())
        if kind == BUSY:
            self._again_at = now + BUSY_SECONDS
        elif code == 0:
            self._report_until = now + VISIBLE_SECONDS
        elif code < 0 or code in STOPPED:
            return self._lost(f"{why} on {self.cluster.name(node)}")
        else:
            return self._failed(node, code, f"{why} (on {self.cluster.name(node)})")
        return None

    def reason(self, code: int) -> str:
        """Why it failed."""
        return self._why

    def interrupt(self) -> None:
        """Interrupt it, as Ctrl-C does."""
        if self._result is not None:
            with contextlib.suppress(self.cluster.ray.exceptions.RayError):  # a lost cluster must not keep others from it
                self.cluster.ray.cancel(self._result)

    def stop(self) -> None:
        """Interrupt it, and wait until it has saved."""
        if self._result is not None:
            with contextlib.suppress(self.cluster.ray.exceptions.RayError):
                self.interrupt()
                self.cluster.ray.wait([self._result], timeout=GRACE + LOOK_SECONDS)
            self._result = None

    def _without_room(self, now: float) -> int | None:
        """None while it runs, or while there is a node that can take it; its exit code after a minute without one."""
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_SECONDS
        if self.cluster.roomy(self._failed_on) or in_use(self.folder):
            self._room_until = NEVER
        elif self._room_until == NEVER:
            self._room_until = now + NO_ROOM_SECONDS
        if now < self._room_until:
            return None
        self.stop()
        return self._fail(self._why or self.cluster.no_room())

    def _lost(self, why: str) -> int | None:
        """Start it again, unless it was lost too often."""
        if self._lost_times >= self.cluster.plan.retries:
            return self._fail(f"{why}; it was started {self._lost_times + 1} times")
        self._lost_times += 1
        self.cluster.notify(f"{self.folder.name}: {why}; it starts again ({self._lost_times} of {self.cluster.plan.retries})")
        return self._start_again()

    def _failed(self, node: str, code: int, why: str) -> int | None:
        """Start it on a node where it has not failed, if there is one."""
        self._failed_on.add(node)
        self._code, self._why = code, "; ".join(filter(None, [self._why, why]))
        if len(self._failed_on) > self.cluster.plan.retries or not self.cluster.roomy(self._failed_on):
            return self._fail(self._why)
        self.cluster.notify(f"{self.folder.name}: {why}; it starts again on another node")
        return self._start_again()

    def _start_again(self) -> None:
        self.start()

    def _fail(self, why: str) -> int:
        self._why = why
        return self._code


def _connect() -> Any:
    """Ray, connected to a running cluster.

    Raises:
        RunError: Ray is not installed, or no cluster is found.
    """
    try:
        import ray
    except ImportError as error:
        raise RunError("--on ray needs Ray; in a copy of the repository: pip install ./hardware '.[ray]'") from error
    where = os.environ.get("RAY_ADDRESS", "")
    try:
        check_reachable(where)
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"no Ray cluster {f'at RAY_ADDRESS={where}' if where else 'runs on this machine'} ({error}): start one with "
            "`ray start --head`, join others with `ray start --address=HOST:6379`, and set RAY_ADDRESS=HOST:6379 elsewhere"
        ) from error
    return ray


def check_reachable(address: str) -> None:
    """Connect to HOST:PORT once, for which Ray itself would try for minutes.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), REACHED_SECONDS).close()


def _task() -> Callable[[dict[str, Any]], tuple[str, str, int, str]]:
    """The function that a node runs. Being local it is sent by value, so that it can say that spikeprop is missing there."""

    def work(given: dict[str, Any]) -> tuple[str, str, int, str]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        try:
            from spikeprop.sweep.node import run_trial
        except ImportError as error:
            return node, "unfit", 1, f"its Python cannot import spikeprop ({error}); install it there"
        try:
            return node, *run_trial(**given)
        except Exception as error:
            return node, "ended", 1, f"{type(error).__name__}: {error}"

    return work
