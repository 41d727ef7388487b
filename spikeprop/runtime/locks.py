"""Who is at work in a folder: one run, evaluation or sweep at a time, the others are refused and told whose it is.

The lock is the kernel's (``flock``, or Windows' own, by way of filelock's ``lock_descriptor``) on a file that stays where it is.
It belongs to an open descriptor, so it is gone when its process is, however that ended, and a file that was left behind holds up
nobody. What the file says (process, machine, since when) is for people. Programs that a process starts do not inherit the
descriptor, and processes that it forks close theirs, lest a worker that outlives a killed run keeps the folder. Who only reads
takes no lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
import warnings
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from spikeprop.errors import BusyError
from spikeprop.runtime.files import parse_json, process_exists
from spikeprop.runtime.processes import ALONE, Processes

NAME = ".lock"  # in the folder
PATIENCE = 3.0  # seconds: a process that was killed, or that torchrun is about to start again, takes a moment to be gone
LOOK_EVERY = 0.05  # seconds
LONGEST_NOTE = 1000  # letters
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # of file systems that have none

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """A file that one process holds, with those that it hands the descriptor to.

    Args:
        path: of the file; made, with its folder, when the lock is first asked for.
    """

    def __init__(self, path: Path):
        self.path = path
        self.descriptor: int | None = None

    def acquire(self, patience: float = 0.0) -> bool:
        """Whether it is ours now; waits for so many seconds at most.

        On a file system without locks (some network mounts) everyone gets it, with a warning.

        Raises:
            OSError: the file cannot be opened.
        """
        if self.descriptor is None:
            self.descriptor = self._open()
            _held.add(self)
        ours, deadline = False, time.monotonic() + patience
        try:
            while not (ours := self._try(self.descriptor)) and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)
        finally:
            if not ours:
                self.release()
        return ours

    def _open(self) -> int:
        """A descriptor that no program inherits, for writing where that may be: over NFS only such can be locked."""
        alone = getattr(os, "O_NOFOLLOW", 0)  # no link that somebody put there
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | alone, 0o666)
        except OSError as error:
            if isinstance(error, PermissionError) and self.path.exists():
                return os.open(self.path, os.O_RDONLY | alone)  # another user's, in a folder that both may write
            nowhere = self.path.parent.is_symlink() and not self.path.parent.exists()
            why = "its folder is a link to nothing" if nowhere else error.strerror
            raise OSError(error.errno, f"cannot write {self.path}: {why}; use another --out folder") from error

    def _try(self, descriptor: int) -> bool:
        from filelock import lock_descriptor

        try:
            return lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"{self.path.parent} is on a file system without locks ({error.strerror}): a second process at work there would "
                "not be noticed",
                stacklevel=3,
            )
            return True

    def release(self) -> None:
        """Give up our hold; a process that was handed the descriptor keeps it."""
        _held.discard(self)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def sign(self) -> None:
        """Say in the file who holds it, for people alone: where it cannot be written, that is no reason not to go on."""
        assert self.descriptor is not None
        text = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat()})
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.write(self.descriptor, text.encode())

    def holder(self) -> str:
        """Who holds it, as far as the file says it: "process 7 on HOST, at work since DATE", else "another process"."""
        try:
            with open(self.path, encoding="utf-8") as file:
                signed = parse_json(file.read(LONGEST_NOTE))
            pid, host, since = int(signed["pid"]), str(signed["host"]), datetime.fromisoformat(signed["since"])
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"
        if host == platform.node() and not process_exists(pid):  # who came after it could not sign
            return "another process"
        return f"process {pid} on {host}, at work since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _close_in_child() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def locked(folder: Path, processes: Processes = ALONE) -> Iterator[None]:
    """Within, these processes alone write the folder, which is made if absent; rank 0 holds the lock for all.

    Raises:
        BusyError: another process is at work there and does not end within ``PATIENCE``; naming it.
        OSError: the folder may not be written.
        ProcessError: on other ranks, where rank 0 could not have it.
    """
    lock = Lock(folder / NAME)
    processes.on_rank_zero(lambda: _take(lock, folder))
    try:
        yield
    finally:
        lock.release()


def _take(lock: Lock, folder: Path) -> None:
    if not lock.acquire(PATIENCE):
        raise BusyError(f"{folder} is in use by {lock.holder()}: wait for it, stop it, or use another --out folder")
    lock.sign()


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder at this moment."""
    lock = Lock(folder / NAME)
    try:
        return lock.path.exists() and not lock.acquire()
    finally:
        lock.release()
