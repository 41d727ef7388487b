"""The command line: run, sweep, report, check, ls, eval, export, simulate, budget, explain. The only place that prints.

Each file defines a group of verbs. A verb imports what it needs when it is called, so that ``spikeprop --help`` is fast. Exit
codes are those that ``spikeprop --help`` lists (``group.EXIT_CODES``).
"""

from spikeprop.cli import deploying, looking, running, zoo  # noqa: F401 - they add their verbs to it
from spikeprop.cli.group import main

__all__ = ["main"]
