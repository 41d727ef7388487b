"""The verb ``precision``: how many bits a network's weights need on a chip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikeprop.cli.group import main
from spikeprop.cli.options import shows_images
from spikeprop.cli.printing import columns, result, table


@main.command(
    short_help="Tell how many bits the weights of a network need.",
    example="spikeprop precision zoo:digits-cnn-stdb --samples 300",
)
@shows_images
@click.option("--samples", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--per-channel", is_flag=True, help="With an exponent for each channel, for chips that have that.")
@click.option("--layers", "bits", type=click.IntRange(2, 8), default=4, show_default=True,
              help="Bits at which each layer by itself is tried.")  # fmt: skip
@click.option("--cores", type=click.IntRange(min=1), help="Choose bits by layer so that so many cores of Loihi 2 hold them.")
def precision(
    source: Path,
    name: str | None,
    samples: int,
    per_channel: bool,
    bits: int,
    cores: int | None,
    data: str | None,
    encoder: str | None,
    trusted: tuple[str, ...],
    **options: Any,
) -> None:
    """Accuracy in integers by weight format, what each layer loses, and with --cores the best mix. NETWORK is as for simulate."""
    from spikeprop.deploy import bits_curve, mixed_precision, sensitivity
    from spikeprop.evaluate.report import accuracy_text, format_text
    from spikeprop.experiment.simulation_input import open_simulation_input
    from spikeprop.runtime.seeding import seed_torch

    with open_simulation_input(source, name, encoder, trusted) as opened:
        given = opened.with_options(use=data, **options)
        images, labels = given.images(samples)
        asked = (given.network, images, labels, given.simulated_steps(images))
        seed_torch(given.seed, 3)
        curve = bits_curve(*asked, per_channel=per_channel)
        layers = sensitivity(*asked, bits=bits, per_channel=per_channel)
        mix = None if cores is None else mixed_precision(*asked, cores=cores, per_channel=per_channel)
    result(network=source, curve=curve, layers=layers, mixed=mix)
    table(str(source), [(f"weights of {format_text(row['bits'])}", accuracy_text(row)) for row in curve])
    rows = [(f["name"], f"{f['accuracy']:.2f} %", f"{f['agreement']:.2f} %", f"{100 * f['output_error']:.2f} %") for f in layers]
    columns((f"{bits} bits in", "accuracy", "agrees with 8 bits", "output changes by"), rows)
    if mix is not None:
        chosen = ", ".join(f"{layer}: {b}" for layer, b in mix["bits"].items())
        accuracy = f"{mix['accuracy']:.2f} % (8 bits {mix['accuracy_8_bits']:.2f} %)"
        table(f"in {mix['cores']} cores", [("bits", chosen), ("accuracy", accuracy)])
