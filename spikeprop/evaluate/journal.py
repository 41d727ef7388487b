"""``Journal``: the folder of one evaluation, which can be killed at any moment and resumed.

``evaluation.json`` says what is evaluated and how. Every few seconds ``parts/`` gets a file with the predictions for a few
batches. It is written under a temporary name and renamed, so it is complete or absent. When all batches are there they become
``predictions.safetensors``. A damaged file is renamed, with a warning, and its predictions are computed again. A folder belongs
to one evaluation: another one is refused rather than mixed in. A process that writes holds the lock of the folder, or of the run
to which it belongs (``spikeprop.runtime.locks``).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from spikeprop.errors import DamagedFileError, EvaluationError
from spikeprop.evaluate.predictor import BatchPredictions, pack, unpack
from spikeprop.runtime.files import leaves, read_json, read_tensors, write_json, write_tensors

FORMAT = 1
BEGIN_AGAIN = "so the predictions beside it may be of another evaluation: use another --out folder, or --restart to predict again"


class Journal:
    """The folder of one evaluation.

    Args:
        path: of the folder; made by ``open``.
        settings: JSON values that say what is evaluated; a folder with others is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **settings}))

    def open(self, about: Mapping[str, Any], *, restart: bool = False) -> None:
        """Make the folder, or check that it is this evaluation's.

        Args:
            about: JSON values to keep beside the settings (machine, versions), which may differ when it is resumed.
            restart: delete what the folder holds.

        Raises:
            EvaluationError: the folder holds another evaluation, naming what differs.
            DamagedFileError: its ``evaluation.json`` cannot be read.
        """
        file = self.path / "evaluation.json"
        if file.exists() and not restart:
            return self._check_same(recorded(self.path)["settings"])
        self._forget()
        return write_json(file, {"settings": self.settings, **about})

    def about(self) -> dict[str, Any]:
        """The values kept beside the settings when the evaluation began."""
        return {key: value for key, value in recorded(self.path).items() if key != "settings"}

    def read(self) -> dict[int, BatchPredictions]:
        """The finished batches by number, ascending."""
        complete = self.path / "predictions.safetensors"
        files = [complete, *self._parts()] if complete.exists() else self._parts()
        found = {batch.number: batch for file in files for batch in _load(file)}
        return dict(sorted(found.items()))

    def add(self, batches: Sequence[BatchPredictions]) -> None:
        """Keep the predictions for these batches."""
        if batches:
            _save(self.path / "parts" / f"{batches[0].number:06d}-{batches[-1].number:06d}.safetensors", batches)

    def finish(self, batches: Sequence[BatchPredictions]) -> None:
        """Put all predictions into one file."""
        if not (self.path / "predictions.safetensors").exists():
            _save(self.path / "predictions.safetensors", batches)
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    def _parts(self) -> list[Path]:
        """The complete files: a temporary name, which a killed process leaves, begins with a dot."""
        return sorted(p for p in (self.path / "parts").glob("*.safetensors") if not p.name.startswith("."))

    def _forget(self) -> None:
        (self.path / "evaluation.json").unlink(missing_ok=True)
        (self.path / "predictions.safetensors").unlink(missing_ok=True)
        if (self.path / "parts").exists():
            shutil.rmtree(self.path / "parts")

    def _check_same(self, recorded: dict[str, Any]) -> None:
        old, new = leaves(recorded), leaves(self.settings)
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            shown = ", ".join(f"{key}: {_short(old.get(key))} there, {_short(new.get(key))} here" for key in changed[:4])
            raise EvaluationError(
                f"{self.path} holds another evaluation ({shown}); use another --out folder, or --restart to predict again"
            )


def recorded(folder: Path) -> dict[str, Any]:
    """The contents of an evaluation's ``evaluation.json``: "settings", and what is kept beside them.

    Raises:
        DamagedFileError: it cannot be read.
    """
    file = folder / "evaluation.json"
    try:
        found = read_json(file)
    except DamagedFileError as error:
        raise DamagedFileError(f"{file} is damaged ({error.__cause__ or error}); {BEGIN_AGAIN}") from error
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise DamagedFileError(f"{file} is damaged (it names no settings); {BEGIN_AGAIN}")
    return found


def _short(value: Any) -> str:
    """A value in a message; hashes are cut."""
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _save(path: Path, batches: Sequence[BatchPredictions]) -> None:
    write_tensors(path, pack(batches))


def _load(path: Path) -> list[BatchPredictions]:
    """The predictions in a file; none where it is damaged, and then it is renamed."""
    try:
        tensors, _ = read_tensors(path, ())
        return unpack(tensors)
    except (DamagedFileError, LookupError, RuntimeError, StopIteration) as error:  # the last three: other tensors
        warnings.warn(f"{error}: its images are predicted again", stacklevel=4)
        with suppress(OSError):  # another process was first, or the folder may only be read
            path.replace(path.with_name(f"{path.name}.damaged"))
        return []
