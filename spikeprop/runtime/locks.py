"""Locks on folders: one run, evaluation or sweep at a time writes a folder; others are refused, and the message names the holder.

The lock is the kernel's (``flock``, or Windows' equivalent, by filelock's ``lock_descriptor``) on a file that is never deleted.
It belongs to an open descriptor, so it ends with its process, however that ends, and a file that was left behind blocks nothing.
The content of the file (process, machine, start time) is only for messages. Programs that a process starts do not inherit the
descriptor, and forked processes close theirs, so that a worker that outlives a killed run does not keep the lock. Readers take no
lock.
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
PATIENCE = 3.0  # seconds: a process that was killed, or that torchrun restarts, needs a moment to end
LOOK_EVERY = 0.05  # seconds
LONGEST_NOTE = 1000  # characters
NOT_SUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # on file systems without locks

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """A file that one process holds, and programs to which it passes the descriptor.

    Args:
        path: of the file; created, with its folder, when the lock is first acquired.
    """

    def __init__(self, path: Path):
        self.path = path
        self.descriptor: int | None = None

    def acquire(self, patience: float = 0.0) -> bool:
        """Whether this process holds the lock now; waits for at most ``patience`` seconds.

        On a file system without locks (some network mounts) every process gets it, with a warning.

        Raises:
            OSError: the file cannot be opened.
        """
        if self.descriptor is None:
            self.descriptor = self._open()
            _held.add(self)
        acquired, deadline = False, time.monotonic() + patience
        try:
            while not (acquired := self._try(self.descriptor)) and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)
        finally:
            if not acquired:
                self.release()
        return acquired

    def _open(self) -> int:
        """A descriptor that programs do not inherit; for writing if permitted, because NFS locks only such descriptors."""
        no_follow = getattr(os, "O_NOFOLLOW", 0)  # refuses a symbolic link
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | no_follow, 0o666)
        except OSError as error:
            if isinstance(error, PermissionError) and self.path.exists():
                return os.open(self.path, os.O_RDONLY | no_follow)  # another user's file in a shared folder
            broken = self.path.parent.is_symlink() and not self.path.parent.exists()
            why = "its folder is a broken link" if broken else error.strerror
            raise OSError(error.errno, f"cannot write the folder {self.path.parent}: {why}; use another --out folder") from error

    def _try(self, descriptor: int) -> bool:
        from filelock import lock_descriptor

        try:
            return lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            warnings.warn(
                f"{self.path.parent} is on a file system without locks ({error.strerror}): a second process that writes there "
                "would not be noticed",
                stacklevel=3,
            )
            return True

    def release(self) -> None:
        """Release the lock; a program to which the descriptor was passed keeps it."""
        _held.discard(self)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def sign(self) -> None:
        """Write the holder into the file, for messages only; a failure to write is ignored."""
        assert self.descriptor is not None
        text = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat()})
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.write(self.descriptor, text.encode())

    def holder(self) -> str:
        """The holder as the file names it: "process 7 on HOST, at work since DATE", else "another process"."""
        try:
            with open(self.path, encoding="utf-8") as file:
                signed = parse_json(file.read(LONGEST_NOTE))
            pid, host, since = int(signed["pid"]), str(signed["host"]), datetime.fromisoformat(signed["since"])
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"
        if host == platform.node() and not process_exists(pid):  # a later holder could not write its name
            return "another process"
        return f"process {pid} on {host}, at work since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _close_in_child() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def locked(folder: Path, processes: Processes = ALONE) -> Iterator[None]:
    """Within this context only these processes write the folder, which is created if absent; rank 0 holds the lock for all.

    Raises:
        BusyError: another process holds the lock for longer than ``PATIENCE``; the message names it.
        OSError: the folder cannot be written.
        ProcessError: on other ranks, if rank 0 did not get the lock.
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
    """Whether a process holds the lock of the folder now."""
    lock = Lock(folder / NAME)
    try:
        return lock.path.exists() and not lock.acquire()
    finally:
        lock.release()
