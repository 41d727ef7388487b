"""Options that several verbs have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from spikeprop.errors import CheckpointError, RecipeError, RunError
from spikeprop.runtime.places import no_checkpoint, no_run_folder

NETWORK_NAMES = click.Choice(["ann", "converted", "finetuned", "trained"])
NETWORK = click.option("--network", "name", type=NETWORK_NAMES, help="Of a run folder; default the last one of the pipeline.")
TRUSTED = click.option(
    "--import", "trusted", multiple=True, metavar="PACKAGE", help="Code from outside that a file's network or data may import."
)
TARGET = click.option(
    "--target", metavar="CHIP", help="loihi2, loihi1, speck, xylo, generic or generic-BITS.",
    callback=lambda _context, _option, name: name and name.lower().replace("_", "-"),
)  # fmt: skip


class CheckpointPath(click.Path):
    """A checkpoint, a run folder or zoo:NAME, which is there: found before a verb imports anything heavy (``Verb.invoke``)."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def check_there(self, path: Path) -> None:
        """Raises CheckpointError if it is not, with the nearest name."""
        if not str(path).startswith("zoo:") and not path.exists():
            raise CheckpointError(no_checkpoint(path))


class RunFolderPath(click.Path):
    """A run folder or zoo:NAME, likewise."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def check_there(self, path: Path) -> None:
        """Raises RunError if it is not there, with the nearest name."""
        if not str(path).startswith("zoo:") and not path.exists():
            raise RunError(no_run_folder(path))


class RecipeName(click.ParamType):
    """The same of recipes: a file, or the name of one that comes with spikeprop."""

    name = "text"

    def check_there(self, source: str) -> None:
        """Raises RecipeError if it is neither, with the nearest name."""
        from spikeprop.recipe.text import find_recipe

        if source.startswith("zoo:"):
            raise RecipeError(
                f"{source} is a trained network and no recipe: `spikeprop convert {source}` converts an ANN, `spikeprop eval "
                f"{source}` evaluates it; its folder holds the recipe that made it, which trains it again"
            )
        find_recipe(source)


def shows_images(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options of verbs that show images to a NETWORK."""
    options = [
        click.argument("source", type=CheckpointPath(), metavar="NETWORK"),
        NETWORK,
        click.option("--data", help="Data set; default the one that the network was trained on."),
        click.option("--root", help="Folder of the data; default $SPIKEPROP_DATA."),
        click.option(
            "--mean",
            callback=by_channel,
            help="Mean for normalisation, one number or one a channel (0.49,0.48,0.45); default the file's.",
        ),
        click.option("--std", callback=by_channel, help="Standard deviation for normalisation, likewise; default the file's."),
        click.option("--timesteps", type=click.IntRange(min=1), help="Steps of a simulation; default the recipe's."),
        click.option(
            "--encoder", type=click.Choice(["Direct", "Poisson"]), help="Only for a NIR file that does not name its encoder."
        ),
        TRUSTED,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def by_channel(context: click.Context, parameter: click.Parameter, text: str | None) -> float | list[float] | None:
    """One number, or several separated by commas."""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: give one number, or one for each channel, for example 0.49,0.48,0.45") from error
    if not all(math.isfinite(number) for number in found):
        raise click.BadParameter(f"{text!r}: numbers are finite")
    return found[0] if len(found) == 1 else found


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(recipes, overrides) of arguments in any order: what contains "=" and is no file is an override."""
    overrides = [text for text in arguments if "=" in text and not Path(text).exists()]
    return [text for text in arguments if text not in overrides], overrides


def numbers(text: str) -> list[int]:
    """Positive integers, separated by commas."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: give whole numbers, for example 25,50,100") from error
    if min(found) < 1:
        raise click.BadParameter(f"{text!r}: a simulation needs at least 1 step")
    return found
