"""Networks on chips: whether each fits each target, cores, accuracy in the target's integers, and energy by model.

python benchmarks/chips.py --networks zoo:digits-cnn-stdb zoo:digits-snn-direct --images 360 --out results/benchmarks/chips.json

A network that does not fit is shown with the number of findings that stop it, and not simulated. One that fits a chip with a
vendor's simulator is compared with that, spike for spike (``--vendor``). Energies are those of arithmetic and memory together
(spikeprop_hardware/targets/energy.py), least to most, of the spiking network and of the ANN of the same layers, over
``--counted`` samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import parse, save
from spikeprop_hardware import HardwareError
from spikeprop_hardware.targets import TARGETS

from spikeprop.deploy import VENDORS, RunOn, chip_budget, compare, encoded, simulate_on_chip
from spikeprop.experiment.simulation_input import open_simulation_input
from spikeprop.runtime.seeding import seed_torch


def measured(network: str, target: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    with open_simulation_input(Path(network)) as opened:
        given = opened.with_options(timesteps=options.timesteps, root=options.root)
        images, labels = given.images(options.images)
        steps = given.simulated_steps(images)
        seed_torch(given.seed, 3)
        inputs = encoded(given.network, images[: options.counted], steps)
        chip = chip_budget(given.file, inputs, network=given.network, target=target)
        stops = [finding for finding in chip["findings"] if finding["stops"]]
        row: dict[str, Any] = {"network": network, "target": target, "fits": not stops, "stops": stops, "T": inputs.shape[1]}
        row |= {"cores": chip["cores"], "chips": chip["chips"], "energy": chip.get("energy")}
        if not stops:
            row["simulation"] = simulated(given, images, labels, steps, target, options)
    return row


def simulated(
    given: Any, images: Any, labels: Any, steps: int | None, target: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Accuracy in the target's arithmetic, "chip", and in PyTorch; or why there is none."""
    common = given.network, given.file, images, labels, steps, lambda _: None
    try:
        if target in VENDORS:
            found = simulate_on_chip(*common, target, vendor=options.vendor)
            return {"chip": found["accuracy"][target], **found}
        found = compare(*common, RunOn(backend="reference", precision="fixed", target=target))
        return {"chip": found["accuracy"]["reference"], **found}
    except HardwareError as error:
        return {"refused": str(error)}


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""
    fits = "fits" if row["fits"] else f"{len(row['stops'])} findings"
    found = row.get("simulation", {"refused": "-"})
    integers = found.get("refused") or f"{found['chip']:.2f} ({found['accuracy']['pytorch']:.2f})"
    if row["target"] in VENDORS and "spikes_equal" in found:
        integers += ", all spikes equal" if found["spikes_equal"] else ", spikes NOT equal"
    energies = next((e for e in (row["energy"] or {"rows": []})["rows"] if e["model"] == "arithmetic and memory"), None)
    text = " | ".join(_microjoules(energies[kind]) for kind in ("snn", "ann")) if energies else "- | -"
    return f"| {row['network']} | {row['target']} | {row['T']} | {fits} | {row['cores']:,} | {integers} | {text} |"


def _microjoules(joules: Sequence[float]) -> str:
    return " to ".join(f"{value * 1e6:.3g}" for value in joules)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", required=True, help="checkpoints, run folders or zoo:NAME")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="default all")
    parser.add_argument("--images", type=int, default=360, help="for the accuracy; default 360")
    parser.add_argument("--counted", type=int, default=20, help="for the energies; default 20")
    parser.add_argument("--timesteps", type=int, help="default the network's")
    parser.add_argument("--vendor", action="store_true", help="run vendors' simulators too")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parse(parser, argv)
    print("| network | target | T | fits | cores | accuracy in integers (in float) | SNN, uJ | ANN, uJ |")
    print("| --- " * 8 + "|")
    rows = []
    for network in options.networks:
        for target in options.targets:
            rows.append(measured(network, target, options))
            print(shown(rows[-1]), flush=True)
    save(__file__, options, rows=rows)


if __name__ == "__main__":
    main()
