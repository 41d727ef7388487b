"""The command line: run, sweep, report, check, ls, eval, export, simulate, budget, explain. The only place that prints.

A file holds a group of verbs. What a verb needs it imports when it is called, so that ``spikeprop --help`` waits for none of it.
"""

from spikeprop.cli import deploying, looking, running  # noqa: F401 - they hang their verbs on it
from spikeprop.cli.group import main

__all__ = ["main"]
