"""The error that users of this package meet."""


class HardwareError(Exception):
    """The network cannot be laid out, or the simulation cannot be started or failed; the message says what to do."""
