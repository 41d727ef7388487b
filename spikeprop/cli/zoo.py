"""The zoo of trained networks: its list for `ls zoo`, and the verb that adds one."""

from __future__ import annotations

from pathlib import Path

import click

from spikeprop.cli.group import main
from spikeprop.cli.options import NETWORK_NAMES
from spikeprop.cli.printing import result, write


@main.command(
    short_help="Make a network of the zoo from a run folder.", example="spikeprop zoo add runs/digits_cnn_stdb digits-cnn-stdb"
)
@click.argument("action", type=click.Choice(["add"]))
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--network", type=NETWORK_NAMES, help="Of the run; default the last one of its pipeline.")
@click.option("--about", help="One line; default recipe, network and data.")
@click.option("--licence", default="Apache-2.0", show_default=True, help="Of the weights.")
@click.option("--to", "zoo", type=click.Path(path_type=Path), default=Path("zoo"), show_default=True, help="The zoo's folder.")
def zoo(action: str, run: Path, name: str, network: str | None, about: str | None, licence: str, zoo: Path) -> None:
    """Make, or replace, the entry NAME of a zoo from the folder of a finished RUN: network, recipe, report, card, SHA-256.

    Then `spikeprop eval zoo:NAME` and `sp.load("NAME")` find it. A network has at most 10 MiB.
    """
    from spikeprop.experiment.zoo_entry import add_entry

    entry = add_entry(run, name, zoo, network=network, about=about, licence=licence)
    write(f"wrote {zoo / name} ({entry.bytes:,} bytes: {', '.join(entry.files)})")
    result(entry=name, folder=zoo / name, bytes=entry.bytes, files=list(entry.files))


def list_zoo() -> None:
    """What `ls zoo` prints."""
    from spikeprop.runtime.tables import Table
    from spikeprop.runtime.zoo_index import entries, place

    rows, found = [], entries()
    result(zoo=[vars(entry) for entry in found.values()])
    for name, entry in found.items():
        percent = {t: f"{accuracy:.2f}" for t, accuracy in entry.accuracy.items()}
        own = percent.get(str(entry.timesteps), percent.get("ANN"))
        rows.append([name, own, entry.timesteps, percent.get("ANN"), f"{entry.bytes / 1e6:.2f} MB", entry.about])
    heads = ["network", "top-1 (%)", "T", "of its ANN", "size", "about"]
    write(str(Table(f"zoo ({place() or 'index only'})", heads, rows)))
