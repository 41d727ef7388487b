"""Options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

TRUSTED = click.option(
    "--import", "trusted", multiple=True, metavar="PACKAGE", help="Code from outside that a file's network or data may import."
)


def shown(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options of commands that show images to a NETWORK."""
    options = [
        click.argument("network", type=click.Path(path_type=Path)),
        click.option("--data", help="Data set; default the one that it was trained on."),
        click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA."),
        click.option("--mean", type=float, help="Normalisation, where the file does not say it; default 0."),
        click.option("--std", type=float, help="The same; default 1."),
        click.option("--timesteps", type=click.IntRange(min=1), help="Default the recipe's."),
        click.option("--encoder", type=click.Choice(["Direct", "Poisson"]), help="Of a NIR file that does not name its own."),
        TRUSTED,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def numbers(text: str) -> list[int]:
    """Whole numbers above 0, between commas."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: give whole numbers, for example 25,50,100") from error
    if min(found) < 1:
        raise click.BadParameter(f"{text!r}: a simulation needs at least 1 step")
    return found
