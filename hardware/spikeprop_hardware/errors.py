"""The errors that users meet, one family for spikeprop and this package. A message says what is wrong and what to do about it."""


class SpikepropError(Exception):
    """Base of the errors of spikeprop and spikeprop-hardware; the command line shows their message without a traceback."""


class NirError(SpikepropError):
    """A NIR file is damaged, or a NIR graph holds something that is not known or cannot be expressed."""


class HardwareError(SpikepropError):
    """A network does not fit the hardware, or its simulation cannot be started or failed."""


class SimulatorMissing(HardwareError):
    """A simulator is not on this machine, and its environment cannot be made."""


class LavaMissing(SimulatorMissing):
    """Lava is not on this machine: there is no Python 3.10, or its environment cannot be made."""
