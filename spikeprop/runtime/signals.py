"""SIGINT (Ctrl-C) and SIGTERM as a request to stop: the current step is finished and saved before the process stops.

``deferred_signals`` replaces the handlers of both signals by one that records the signal. Loops call ``stop_requested`` where
they can stop, save, and then call ``stop_if_requested``. A second signal ends the process immediately. Under torchrun a Ctrl-C
arrives twice, from the terminal and from torchrun, which forwards it; so there a second signal within ``ECHO`` seconds counts as
the first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from spikeprop.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds within which torchrun forwards a signal
_received: list[int] = []  # a signal is for the process, so this is global: those received within ``deferred_signals``


@contextmanager
def deferred_signals(notify: Callable[[str], None]) -> Iterator[None]:
    """Within this context the first SIGINT or SIGTERM only requests a stop; the second ends the process.

    Python runs signal handlers only in the main thread, so in another thread this does nothing.

    Args:
        notify: called with a message when the first signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    first, echo = 0.0, ECHO if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0.0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first
        if _received and time.monotonic() - first < echo:
            return
        if _received:
            raise SystemExit(128 + number)
        _received.append(number)
        first = time.monotonic()
        name = signal.Signals(number).name
        notify(f"{name}: the current step is finished and saved, then the run stops; a second signal stops it immediately")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def stop_requested() -> bool:
    """Whether a signal has arrived."""
    return bool(_received)


def stop_if_requested() -> None:
    """Stop at this point, where everything is saved.

    Raises:
        Stopped: a signal has arrived.
    """
    if _received:
        raise Stopped(_received[0])
