"""``Context``: what every experiment is given, the hybrid conversion (``spikeprop.experiment.pipeline``) and those of plugins.

An experiment is a frozen dataclass with ``run(context) -> Report`` and, optionally, ``check(here=False)`` and ``smoke()``; a
recipe's ``use`` names it. All experiments have the same command line, the same kind of run folder and the same form of report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from spikeprop.experiment.run_folder import RunFolder
from spikeprop.learn import Callback, TensorBoardLog, tensorboard_installed, write_scalars


@dataclass(frozen=True)
class Context:
    """What a run is given.

    Attributes:
        folder: for stages, figures and checkpoints.
        name: of the recipe.
        notify: shows a line of progress or a warning to the user.
        save_every: seconds between two checkpoints within an epoch.
        tensorboard: whether scalars are written for TensorBoard where it is installed.
    """

    folder: RunFolder
    name: str
    notify: Callable[[str], None]
    save_every: float = 60.0
    tensorboard: bool = True

    @property
    def writes(self) -> bool:
        """Whether this process writes report, pictures and tables: of several processes, rank 0 does."""
        return not self.folder.processes.rank

    def watchers(self, stage: str) -> list[Callback]:
        """Callbacks that show a stage's training in TensorBoard."""
        return [TensorBoardLog(self._scalars(stage))] if self._shows() else []

    def show(self, stage: str, scalars: Mapping[str, Mapping[int, float]]) -> None:
        """Show scalars of a stage, by name and step, in TensorBoard."""
        if self._shows():
            write_scalars(self._scalars(stage), scalars)

    def _shows(self) -> bool:
        return self.tensorboard and self.writes and tensorboard_installed()

    def _scalars(self, stage: str) -> Path:
        return self.folder.path / "tensorboard" / re.sub(r"[^\w.-]+", "_", stage)
