"""The verb that writes a recipe to begin with: new."""

from __future__ import annotations

from pathlib import Path

import click

from spikeprop.cli.group import main
from spikeprop.cli.printing import result, write

DOORS = ("trained", "train", "finetune", "scratch")


@main.command(short_help="Write a commented recipe to begin with.", example="spikeprop new mine --for finetune")
@click.argument("name")
@click.option("--for", "door", type=click.Choice(DOORS), default="finetune", show_default=True,
              help="trained: convert a network that has weights; train: train an ANN and convert it; finetune: train, convert "
              "and fine-tune with spikes; scratch: train a spiking network.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file of that name.")
def new(name: str, door: str, force: bool) -> None:
    """Write the recipe NAME.yaml, with a comment on every key. It runs as it is, on scikit-learn's digits; the one for a trained
    network needs your file with weights.

    Change it key by key; `spikeprop check NAME.yaml` names every mistake, `spikeprop run NAME.yaml --smoke` tries it.
    """
    from spikeprop.recipe.templates import new_recipe

    file = Path(name if Path(name).suffix in {".yaml", ".yml"} else f"{name}.yaml")
    new_recipe(file, door, replace=force)
    write(f"wrote {file}; next: spikeprop check {file}, spikeprop run {file} --smoke, spikeprop run {file}")
    result(file=file)
