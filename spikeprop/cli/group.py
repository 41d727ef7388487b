"""What all verbs hang on, and what becomes of errors: those that a user can mend are one message, the rest are ours."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import click

from spikeprop.cli.printing import say
from spikeprop.errors import SpikepropError, Stopped, worker_died


class Friendly(click.Group):
    """Shows errors that a user can mend as one message; Ctrl-C and bad files end without a traceback."""

    def main(self, args: Any = None, *rest: Any, **more: Any) -> Any:
        self.told = list(sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            from spikeprop.runtime.processes import resume_command

            command = resume_command(self.told)
            if command is not None:
                say(f"stopped, and everything so far is saved; go on with: {command}")
            ctx.exit(128 + stopped.signal)
        except (SpikepropError, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            died = worker_died(error)
            if died is None:
                raise
            raise click.ClickException(str(died)) from error


@click.group(cls=Friendly, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spikeprop")
def main() -> None:
    """From recipe to neuromorphic chip: train, convert, fine-tune with STDB, evaluate, export, run on Lava."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
