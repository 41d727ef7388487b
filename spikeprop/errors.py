"""Errors that users meet. Each message names the thing that is wrong and what to do about it."""

from spikeprop_hardware.errors import HardwareError as HardwareError
from spikeprop_hardware.errors import NirError as NirError
from spikeprop_hardware.errors import SpikepropError as SpikepropError


class DamagedFileError(SpikepropError):
    """A file of ours is truncated, altered, or larger than it can rightly be."""


class Stopped(SpikepropError):
    """A signal asked to stop, and what was done is saved; ``signal`` is its number."""

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class WorkerDied(SpikepropError):
    """A process that decodes images was killed."""

    def __init__(self, told: str):
        super().__init__(
            f"a process that decodes photographs died ({told.splitlines()[0]}): often memory ran out. The same command goes on "
            "from the last checkpoint; data.workers=1 takes less memory, data.workers=0 decodes in the main process"
        )


def worker_died(error: BaseException | None) -> WorkerDied | None:
    """The death of a DataLoader's process, where that is what led to an error; torch tells of it in the middle of anything."""
    while error is not None:
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
            return WorkerDied(str(error))
        error = error.__cause__ or error.__context__
    return None


class RecipeError(SpikepropError):
    """A recipe, component or override is wrong."""


class ConversionError(SpikepropError):
    """The network holds something that cannot be converted to spikes."""


class MissingDataError(SpikepropError):
    """Data files are absent, truncated or damaged."""


class CheckpointError(SpikepropError):
    """A checkpoint cannot be read or belongs to another architecture."""


class TrainingCollapsed(SpikepropError):
    """The loss is not finite or accuracy fell under chance."""


class SegmentError(SpikepropError):
    """A network cannot be cut into stages as a learning rule needs them."""


class RunError(SpikepropError):
    """A folder is no run's, or what lies in it is damaged; or a sweep's folder belongs to another sweep."""


class BusyError(SpikepropError):
    """Another process is at work in the folder."""


class EvaluationError(SpikepropError):
    """An evaluation's folder holds another evaluation, or the network and the data do not fit each other."""


class ProcessError(SpikepropError):
    """Of several processes one cannot go on, so none does."""


class RankError(SpikepropError):
    """A matrix is rank-deficient (or not finite), so its factors have no derivative."""


class MarketError(SpikepropError, ValueError):
    """A market, product or simulation of the risk plugin is impossible: the quantity and its bound are named."""


class ExplainError(SpikepropError):
    """A training step cannot be shown, or what to show cannot be found."""
