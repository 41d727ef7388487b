"""The group of all verbs, and its errors: an error that the user can correct is one message, any other has a traceback."""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from spikeprop.cli.printing import say
from spikeprop.errors import SpikepropError, Stopped, worker_died

EXIT_CODES = """\b
Exit codes:
  0    done
  1    an error, of which the message says what to change; with a traceback, a defect of spikeprop
  2    wrong usage: unknown verb or option, missing argument
  130  stopped by Ctrl-C (SIGINT): what is finished is saved, and the same command continues
  143  the same, stopped by SIGTERM
"""


class VerbGroup(click.Group):
    """Shows errors that a user can correct as one message, without a traceback, and ends with the exit codes above."""

    def main(self, args: Any = None, *rest: Any, **more: Any) -> Any:
        self.arguments = list(sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            from spikeprop.runtime.processes import resume_command

            command = resume_command(self.arguments)
            if command is not None:
                say(f"stopped, and everything so far is saved; go on with: {command}")
            ctx.exit(128 + stopped.signal)
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)
        except (SpikepropError, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            died = worker_died(error)
            if died is None:
                raise
            raise click.ClickException(str(died)) from error


@click.group(cls=VerbGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spikeprop")
@click.pass_context
def main(context: click.Context) -> None:
    """From recipe to neuromorphic chip: train, convert, fine-tune with STDB, evaluate, export, run on Lava."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:  # `python -m` has it already
        sys.path.append(here)  # at the end: a file there must not replace an installed module
        context.call_on_close(lambda: sys.path.remove(here))
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
