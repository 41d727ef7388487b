"""Ctrl-C and SIGTERM as a request: whoever is at work finishes its step, saves, and then stops.

``held`` replaces the handlers of both signals by one that notes the signal. Loops ask ``stop_asked`` where they could stop, save,
and call ``stop_if_asked``. A second signal does not wait.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from spikeprop.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []  # signals belong to the process, and so does this: what arrived since ``held`` began


@contextmanager
def held(notify: Callable[[str], None]) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM only asks to stop. Does nothing outside the main thread, which alone gets signals.

    Args:
        notify: told when the first arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        if _asked:
            raise SystemExit(128 + number)
        _asked.append(number)
        notify(f"{signal.Signals(number).name}: this step is finished and saved, then the run stops; once more stops at once")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def stop_asked() -> bool:
    """Whether a signal has arrived."""
    return bool(_asked)


def stop_if_asked() -> None:
    """Stop here, where everything is saved.

    Raises:
        Stopped: a signal has arrived.
    """
    if _asked:
        raise Stopped(_asked[0])
