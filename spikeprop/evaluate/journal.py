"""``Journal``: the folder of one evaluation, which can be killed at any moment and go on.

``evaluation.json`` says what is evaluated and how. ``parts/`` gets a file with the predictions for a few batches every few
seconds, written to a temporary name and renamed, so a batch is there whole or not at all, whichever process predicted it.
When all are there they become ``predictions.safetensors``. Damaged predictions are put aside with a warning and computed
again. A folder belongs to one evaluation: another one is refused rather than mixed in. Who writes one holds the folder's
lock, or that of the run that it is part of (``spikeprop.runtime.locks``).
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
BEGIN_ANEW = "whose predictions lie beside it is not known: use another --out folder, or --restart to throw them away"


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
            about: JSON values to keep beside the settings (machine, versions), which may differ when it goes on.
            restart: throw away what lies there.

        Raises:
            EvaluationError: the folder holds another evaluation, naming what differs.
            DamagedFileError: what it says of its evaluation cannot be read.
        """
        file = self.path / "evaluation.json"
        if file.exists() and not restart:
            return self._check_same(recorded(self.path)["settings"])
        self._forget()
        return write_json(file, {"settings": self.settings, **about})

    def about(self) -> dict[str, Any]:
        """What was kept beside the settings when the evaluation began."""
        return {key: value for key, value in recorded(self.path).items() if key != "settings"}

    def read(self) -> dict[int, BatchPredictions]:
        """The batches that are predicted, by number, ascending."""
        whole = self.path / "predictions.safetensors"
        files = [whole, *self._parts()] if whole.exists() else self._parts()
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
        """Those that are whole: what was being written when a process was killed has a name with a dot."""
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
                f"{self.path} holds another evaluation ({shown}); use another --out folder, or --restart to throw that one away"
            )


def recorded(folder: Path) -> dict[str, Any]:
    """What an evaluation's folder says of it: "settings", and what is kept beside them.

    Raises:
        DamagedFileError: it cannot be read.
    """
    file = folder / "evaluation.json"
    try:
        found = read_json(file)
    except DamagedFileError as error:
        raise DamagedFileError(f"{file} is damaged ({error.__cause__ or error}); {BEGIN_ANEW}") from error
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise DamagedFileError(f"{file} is damaged (it names no settings); {BEGIN_ANEW}")
    return found


def _short(value: Any) -> str:
    """A value in a message; hashes are cut."""
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _save(path: Path, batches: Sequence[BatchPredictions]) -> None:
    write_tensors(path, pack(batches))


def _load(path: Path) -> list[BatchPredictions]:
    """The predictions in a file; none where it is damaged, and then it is put aside."""
    try:
        tensors, _ = read_tensors(path, ())
        return unpack(tensors)
    except (DamagedFileError, LookupError, RuntimeError, StopIteration) as error:  # the latter of a file that is not ours
        warnings.warn(f"{error}: its images are asked again", stacklevel=4)
        with suppress(FileNotFoundError):  # another process was first
            path.replace(path.with_name(f"{path.name}.damaged"))
        return []
