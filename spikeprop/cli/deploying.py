"""Verbs that bring a network to the hardware: export, simulate, budget."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from spikeprop.cli.group import main
from spikeprop.cli.options import NETWORK, TARGET, TRUSTED, CheckpointPath, shows_images
from spikeprop.cli.printing import columns, result, say, table, write


@main.command(short_help="Write a spiking network as NIR, ONNX, or for lava-dl.", example="spikeprop export runs/digits_cnn_stdb")
@click.argument("checkpoint", type=CheckpointPath())
@NETWORK
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; default beside the checkpoint.")
@click.option(
    "--for",
    "library",
    type=click.Choice(["norse", "snntorch", "sinabs", "rockpool", "spyx", "spinnaker2"]),
    help="In the form that this library's NIR importer reads.",
)
@click.option("--format", "form", type=click.Choice(["nir", "netx", "onnx"]), default="nir", show_default=True,
              help="netx: integers in HDF5 for lava-dl; one chain, reset to zero, Poisson input, no biases. "
              "onnx: one time step with its state in and out.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float", "fixed"]), default="float", show_default=True,
              help="Of ONNX; fixed: in the integers of Loihi 2, or of --target generic-BITS.")  # fmt: skip
@click.option("--input-limit", type=float, help="Largest absolute input of ONNX in integers; default the encoder's, else 4.")
@TARGET
@TRUSTED
def export(
    checkpoint: Path,
    name: str | None,
    out: Path | None,
    library: str | None,
    form: str,
    precision: Any,
    input_limit: float | None,
    target: str | None,
    trusted: tuple[str, ...],
) -> None:
    """Write a spiking network as a NIR file, for lava-dl, or as an ONNX model. CHECKPOINT is a checkpoint, a run folder or
    zoo:NAME.

    Without --for the file is for spikeprop and its hardware; other libraries would interpret it differently (reset by
    subtraction, milliseconds). What a library does not support is refused. With --target nothing is written that does not fit
    that chip, and what its integers do to each layer is printed.
    """
    from spikeprop.deploy import export as export_nir
    from spikeprop.deploy import export_netx, export_onnx
    from spikeprop.experiment.network_checkpoint import find_checkpoints, load_spiking
    from spikeprop.experiment.zoo import results_folder

    if library and form != "nir":
        raise click.UsageError("--for is for NIR; netx is read by lava-dl only, and ONNX by any runtime")
    if form != "onnx" and (precision != "float" or input_limit is not None):
        raise click.UsageError("--precision and --input-limit are for --format onnx; simulate has them for NIR")
    (found,) = find_checkpoints(checkpoint, [name] if name else [])
    file = out or results_folder(found) / f"{found.stem}.{'net' if form == 'netx' else form}"
    loaded = load_spiking(found, trusted)
    if target is not None:
        _fitting(loaded.network, target)
    if form != "netx":
        if form == "nir":
            export_nir(loaded.network, file, loaded.description, library)
        else:
            steps = loaded.timesteps
            formats: Any = {"precision": precision, "input_limit": input_limit, "target": target}
            export_onnx(loaded.network, file, timesteps=steps, **formats)
        write(f"wrote {file}")
        result(file=file)
        if target is not None:
            _rounded(loaded.network, target, loaded.timesteps)
        return
    layers = export_netx(loaded.network, file)
    result(file=file, layers=layers)
    table(f"wrote {file}", _integers(layers))


@main.command(
    short_help="Compare every spike on Lava with PyTorch's.",
    example="spikeprop simulate runs/digits_cnn_stdb --backend reference --samples 5",
)
@shows_images
@click.option("--samples", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--backend", type=click.Choice(["lava", "reference", "vendor"]),
              help="Lava's CPU simulation (default; needs Python 3.10), or the fast simulator that equals it (default with "
              "--target); vendor: our model of the chip beside its vendor's simulator.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float", "fixed"]), default="float", show_default=True,
              help="fixed: in the integers of Loihi 2.")  # fmt: skip
@TARGET
def simulate(
    source: Path,
    name: str | None,
    samples: int,
    backend: Any,
    precision: Any,
    target: str | None,
    data: str | None,
    encoder: str | None,
    trusted: tuple[str, ...],
    **options: Any,
) -> None:
    """Run a spiking network on Lava and compare every spike with PyTorch's. With --target in that chip's integers, if it fits.

    NETWORK is a checkpoint, a run folder, zoo:NAME or a NIR file.

    Both get the same encoded inputs. A NIR file that `export` wrote names its data, normalisation, encoder and steps; for any
    other NIR file, the options give them.
    """
    from spikeprop.deploy import VENDORS, RunOn, compare, simulate_on_chip
    from spikeprop.experiment.simulation_input import open_simulation_input
    from spikeprop.runtime.seeding import seed_torch

    own = target in VENDORS
    if backend == "vendor" and not own:
        raise click.UsageError(f"--backend vendor is for --target {', '.join(VENDORS)}; Loihi 2's is --backend lava")
    if backend == "lava" and own:
        raise click.UsageError(f"Lava simulates Loihi 2; --target {target} has --backend reference and vendor")
    backend = backend or ("lava" if target is None else "reference")
    with open_simulation_input(source, name, encoder, trusted) as opened:
        given = opened.with_options(use=data, **options)
        if target is not None:
            _fitting(given.network, target)
        images, labels = given.images(samples)
        seed_torch(given.seed, 3)
        if own:
            steps, theirs = given.simulated_steps(images), backend == "vendor"
            found = simulate_on_chip(given.network, given.file, images, labels, steps, say, str(target), vendor=theirs)
            result(network=source, simulation=found)
            _on_chip(str(source), found, str(target))
            return
        where = RunOn(backend=backend, precision="fixed" if target is not None else precision, target=target)
        found = compare(given.network, given.file, images, labels, given.simulated_steps(images), say, where)
    result(network=source, comparison=found)
    table(str(source), _comparison(found))
    rows = [(name, ours, theirs, found["mismatches"][name]) for name, (ours, theirs) in found["layers"].items()]
    columns(("layer", "spikes in PyTorch", f"in {backend}", "that differ"), rows)


@main.command(
    short_help="Count the cores, chips and synapses that a network needs.", example="spikeprop budget runs/digits_cnn_stdb"
)
@shows_images
@click.option("--samples", type=click.IntRange(min=0), default=20, show_default=True, help="To count spikes on; 0 for none.")
@TARGET
def budget(
    source: Path,
    name: str | None,
    samples: int,
    target: str | None,
    data: str | None,
    encoder: str | None,
    trusted: tuple[str, ...],
    **options: Any,
) -> None:
    """Neurons, synapses, axons, cores and chips that a network takes, SynOps and energy. NETWORK is as for simulate.

    An estimate, of Loihi 2 without --target: spikeprop_hardware/targets says which limits are published and which are assumed,
    and targets/energy.py where the energies come from.
    """
    from spikeprop.deploy import chip_budget, encoded
    from spikeprop.evaluate.report import chip_layers, chip_rows, energy_rows
    from spikeprop.experiment.simulation_input import open_simulation_input
    from spikeprop.runtime.seeding import seed_torch

    with open_simulation_input(source, name, encoder if encoder or samples else "Direct", trusted) as found:
        given, inputs = found.with_options(use=data, **options), None
        if samples:
            images, _ = given.images(samples)
            seed_torch(given.seed, 3)
            inputs = encoded(given.network, images, given.simulated_steps(images))
        chip = chip_budget(given.network, inputs, target or "loihi2")
    result(network=source, budget=chip)
    rows = chip_rows(chip)
    if inputs is not None:
        synops = sum(layer["synops"] for layer in chip["activity"])
        rows.append(("SynOps a sample", f"{synops:,.0f} (mean of {len(inputs)}; T = {inputs.shape[1]})"))
    table(str(source), rows)
    columns(*chip_layers(chip["layers"]))
    if inputs is not None:
        kinds = ("spikes", "payload_bits", "events", "synops")
        active = [(layer["name"], *(round(layer[kind]) for kind in kinds)) for layer in chip["activity"]]
        columns(("spikes of", "a sample", "payload bits", "synaptic events", "SynOps"), active)
    if "energy" in chip:
        energies = energy_rows(chip["energy"])
        columns(("energy a sample (uJ)", "spiking", "ANN"), [row[:3] for row in energies])
        write()
        for model, _, _, where in energies:
            write(f"  {model}: {where}")
        write(f"\n  {chip['energy']['advice']}.")


def _on_chip(title: str, found: dict[str, Any], target: str) -> None:
    """Print a simulation in a chip's own arithmetic."""
    rows = [("samples, steps", f"{found['samples']}, T = {found['timesteps']}")]
    rows += [(f"accuracy, {name}", f"{percent:.2f} %") for name, percent in found["accuracy"].items()]
    heads, wrong = ("layer", "spikes in PyTorch", f"on {target}"), found.get("mismatches")
    if wrong is not None:
        rows.append(("our model and the vendor's", "all spikes equal" if found["spikes_equal"] else "NOT equal"))
        heads = (*heads, "that differ from the vendor's")
    table(title, rows)
    more = {} if wrong is None else wrong
    columns(heads, [(name, *counts, *([more[name]] if name in more else [])) for name, counts in found["layers"].items()])


def _fitting(network: Any, target: str) -> None:
    """Say how a network fits a chip; an error where it does not."""
    found = network.fits(target)
    say(str(found))
    result(target=found.target, findings=[asdict(finding) for finding in found.findings])
    if not found:
        raise click.ClickException(f"the network does not fit {found.target}; what stands in the way is above")


def _rounded(network: Any, target: str, timesteps: int | None) -> None:
    """What a chip's integers do to each layer, of a network that fits it."""
    from spikeprop.deploy import rounded_on_chip

    layers = rounded_on_chip(network, target, timesteps)
    result(quantization=layers)
    table(f"in the integers of {target}", _integers(layers))


def _comparison(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows on a simulation that ``compare`` compared with PyTorch's."""
    from spikeprop.evaluate.report import equality, steps_text

    rows = [
        ("samples, steps", f"{found['samples']}, {steps_text(found['timesteps'], found['levels'])}"),
        ("predictions agree", f"{found['agreement']:.1f} %"),
        *((f"accuracy, {name}", f"{percent:.2f} %") for name, percent in found["accuracy"].items()),
        ("spike trains", f"{equality(found)} ({found['spikes']:,} spikes)"),
        ("largest output difference", f"{found['output_error']:.2g}"),
    ]
    first = found["first_difference"]
    if first:
        rows.append(("first difference", ", ".join(f"{key} {value}" for key, value in first.items())))
    if found["clipped"]:
        rows.append(("stopped at 24 bits", ", ".join(f"{name} {count:,} times" for name, count in found["clipped"].items())))
    return rows + _integers(found.get("quantization", []))


def _integers(layers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows on the quantisation of each layer."""
    rows = []
    for layer in layers:
        weights = f"weights off by {100 * layer['weight_error']:.2f} % in {layer['bits']} bits"
        rows.append((f"integers of {layer['name']}", f"{weights}, {layer['saturated']:,} of {layer['weights']:,} clipped"))
    return rows
