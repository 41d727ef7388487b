"""The group of all verbs, and its errors: an error that the user can correct is one message, any other has a traceback.

Every verb has ``--quiet``, ``--json`` and an example in its help; all of it is added here.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from spikeprop.cli import printing
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
REMEDIES = {  # of errors of the operating system, by number
    errno.EACCES: "choose another place with --out, or change its permissions",
    errno.EPERM: "choose another place with --out, or change its permissions",
    errno.EROFS: "choose another place with --out: nothing can be written there",
    errno.ENOSPC: "free some space; the same command continues",
    errno.EDQUOT: "free some space; the same command continues",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of this path is a file and no folder; choose another one",
    errno.EEXIST: "a file is in the way; choose another place with --out",
    errno.EISDIR: "this is a folder; give a file",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
}


class Verb(click.Command):
    """A verb, with options that all verbs have and an example.

    Args:
        example: a command line that works as it stands, or after the one before.
    """

    def __init__(self, *arguments: Any, example: str | None = None, **more: Any):
        self.example = example
        shown = f"\b\nExample:\n  {example}" if example else None
        super().__init__(*arguments, epilog=shown, **more)
        self.params += [
            click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, is_eager=True,
                         callback=lambda _c, _p, value: printing.begin(quiet=True) if value else None,
                         help="Show warnings and errors only, beside the result."),
            click.Option(["--json"], is_flag=True, expose_value=False, is_eager=True,
                         callback=lambda _c, _p, value: printing.begin(as_json=True) if value else None,
                         help="Print the result as one JSON object."),
        ]  # fmt: skip

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; a file or folder that is not there is found first."""
        for parameter in self.params:
            check, given = getattr(parameter.type, "check_there", None), ctx.params.get(parameter.name or "")
            if check is not None and given is not None:
                for path in given if isinstance(given, tuple) else (given,):
                    check(path)
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            if self.example is None:
                raise
            raise click.UsageError(f"{error.format_message()} For example: {self.example}", ctx) from error
        except click.NoSuchOption as error:
            if "." not in error.option_name:
                raise
            setting = error.option_name.lstrip("-").partition("=")[0]
            raise click.UsageError(
                f"{error.option_name} is no option; a recipe's setting has no dashes: {setting}=VALUE"
            ) from error


class VerbGroup(click.Group):
    """Shows errors that a user can correct as one message, without a traceback, and ends with the exit codes above."""

    command_class = Verb

    def main(self, args: Any = None, *rest: Any, **more: Any) -> Any:
        self.arguments = list(sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **more)

    def invoke(self, ctx: click.Context) -> Any:
        printing.begin()
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            from spikeprop.runtime.processes import resume_command

            command = resume_command(self.arguments)
            if command is not None:
                say(f"stopped, and everything so far is saved; go on with: {command}")
            ctx.exit(128 + stopped.signal)
        except KeyboardInterrupt:
            say("stopped; the same command begins again, or continues what is saved")
            ctx.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            raise  # the reader has what it wanted; click ends quietly
        except (SpikepropError, OSError, ValueError) as error:
            printing.fail(_message(error))
            ctx.exit(1)
        except click.ClickException as error:
            printing.result(error=error.format_message())
            raise
        except Exception as error:
            died = worker_died(error)
            if died is None:
                raise
            printing.fail(str(died))
            ctx.exit(1)
        finally:
            printing.end()


def _message(error: Exception) -> str:
    """The text of an error; one of the operating system with its remedy."""
    if type(error).__name__ == "URLError":  # of a download
        return f"{error}; check the connection, or copy the file here and give its path"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    text = error.strerror or str(error)
    text = f"{error.filename}: {text}" if error.filename is not None and str(error.filename) not in text else text
    remedy = REMEDIES.get(error.errno)
    return f"{text}; {remedy}" if remedy and "--out" not in text else text


@click.group(cls=VerbGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="spikeprop")
@click.pass_context
def main(context: click.Context) -> None:
    """From recipe to neuromorphic chip: train, convert, fine-tune with STDB, evaluate, export, run on Lava."""
    if os.environ.get("NO_COLOR"):
        context.color = False
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:  # `python -m` has it already
        sys.path.append(here)  # at the end: a file there must not replace an installed module
        context.call_on_close(lambda: sys.path.remove(here))
    told: set[str] = set()
    warnings.showwarning = lambda message, *_, **__: _say_once(f"warning: {message}", told)


def _say_once(text: str, told: set[str]) -> None:
    """Say it, unless this command did: data are built several times, and each time they warn of the same file."""
    if text not in told:
        told.add(text)
        say(text)
