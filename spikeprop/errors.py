"""Errors that users meet, grouped by room. Each message names the thing that is wrong and says how to remedy it."""

import traceback
from pathlib import Path

from spikeprop_hardware.errors import HardwareError as HardwareError
from spikeprop_hardware.errors import LavaMissing as LavaMissing
from spikeprop_hardware.errors import NirError as NirError
from spikeprop_hardware.errors import SimulatorMissing as SimulatorMissing
from spikeprop_hardware.errors import SpikepropError as SpikepropError

# runtime ----------------------------------------------------------------------------------------------------------------------


class DamagedFileError(SpikepropError):
    """A file that spikeprop wrote is truncated, altered, or too large."""


class ForeignFileError(DamagedFileError):
    """A file is complete, and of another kind than the one that belongs in its place."""


class BusyError(SpikepropError):
    """Another process is at work in the folder."""


class ProcessError(SpikepropError):
    """One of several processes failed, so all of them end."""


class Stopped(SpikepropError):
    """A signal asked to stop, and the work so far is saved; ``signal`` is its number."""

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class DataError(SpikepropError, ValueError):
    """Data that were passed to a function have a form, type or shape that cannot be used."""


# recipe, data -----------------------------------------------------------------------------------------------------------------


class RecipeError(SpikepropError):
    """A recipe, component or override is wrong; ``problems`` has the message of each mistake."""

    def __init__(self, *problems: str):
        several = f"{len(problems)} mistakes:\n" + "\n".join(f"  {problem}" for problem in problems)
        super().__init__(problems[0] if len(problems) == 1 else several)
        self.problems = problems


class MissingDataError(SpikepropError):
    """Data files are absent, truncated or damaged."""


class WorkerDied(SpikepropError):
    """A process that decodes images was killed."""

    def __init__(self, reason: str):
        super().__init__(
            f"a process that decodes photographs died ({reason.splitlines()[0]}): often memory ran out. The same command resumes "
            "from the last checkpoint; data.workers=1 takes less memory, data.workers=0 decodes in the main process"
        )


def worker_died(error: BaseException | None) -> WorkerDied | None:
    """A WorkerDied if the death of a DataLoader's process led to ``error``; torch reports it in the middle of other work."""
    while error is not None:
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
            return WorkerDied(str(error))
        error = error.__cause__ or error.__context__
    return None


# snn --------------------------------------------------------------------------------------------------------------------------


class SimulationError(SpikepropError, RuntimeError):
    """A spiking network cannot be run in this way: traced, transformed, or with a hook that nothing calls."""


class SilentNetworkWarning(UserWarning):
    """Layers of a network in training do not fire, so that no gradient passes through them."""


# convert, learn, evaluate -----------------------------------------------------------------------------------------------------


class ConversionError(SpikepropError):
    """The network contains an operation that cannot be converted to spikes, or the calibration cannot be done."""


class LabelError(SpikepropError, ValueError):
    """Labels do not fit a network's outputs, or images and labels are not what an accuracy or a loss can use."""


class CheckpointError(SpikepropError):
    """A checkpoint cannot be read or belongs to another architecture."""


class TrainingCollapsed(SpikepropError):
    """The loss or a weight is not finite, or the accuracy is under chance."""


class SegmentError(SpikepropError):
    """A network cannot be cut into segments as a learning rule needs them."""


class EvaluationError(SpikepropError):
    """An evaluation's folder holds another evaluation, or the network and the data do not fit each other."""


# experiment, sweep ------------------------------------------------------------------------------------------------------------


class RunError(SpikepropError):
    """A folder is not that of a run, or its content is damaged; or a sweep's folder belongs to another sweep."""


# plugins ----------------------------------------------------------------------------------------------------------------------


class RankError(SpikepropError):
    """A matrix is rank-deficient (or not finite), so its factors have no derivative."""


class MarketError(SpikepropError, ValueError):
    """A market, product or simulation of the risk plugin is impossible; the message names the quantity and its bound."""


class ExplainError(SpikepropError):
    """A training step cannot be shown, or the requested part of it does not exist."""


def told(error: Exception) -> str:
    """An error of code from outside: its type, its text, and the file and line of that code; some have a bare word as text."""
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = str(Path(__file__).parent)
    own = [(file, line) for file, line in places if not file.startswith((ours, "<")) and "site-packages" not in file]
    return f"{type(error).__name__}: {error}" + (f" ({own[-1][0]}, line {own[-1][1]})" if own else "")
