"""What every experiment shares: the main job's (``spikeprop.pipeline``) and those that plugins bring.

An experiment is a frozen dataclass with ``run(context) -> Report`` and, where it can, ``check(here=False)`` and ``smoke()``; a
recipe's ``use`` names it. All of them have one command line, one kind of run folder and one form of report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spikeprop.runfolder import RunFolder


@dataclass(frozen=True)
class Context:
    """What a run is given.

    Attributes:
        folder: where stages, figures and checkpoints go.
        name: of the recipe.
        notify: tells people what is going on, one line at a time.
        save_every: seconds between two checkpoints within an epoch.
    """

    folder: RunFolder
    name: str
    notify: Callable[[str], None]
    save_every: float = 60.0
