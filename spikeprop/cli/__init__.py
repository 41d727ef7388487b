"""The command line, a group of verbs a file. The only place that prints.

Each file defines a group of verbs. A verb imports what it needs when it is called, so that ``spikeprop --help`` is fast. Exit
codes are those that ``spikeprop --help`` lists (``group.EXIT_CODES``).
"""

from spikeprop.cli import converting, deploying, listing, looking, making, precision, running, zoo  # noqa: F401 - they add their verbs to it
from spikeprop.cli.group import main

__all__ = ["main"]
