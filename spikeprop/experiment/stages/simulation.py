"""The stage ``simulate``: a few test images on Lava, every spike compared with PyTorch's; and the size and energy on the chip,
and accuracy in its own arithmetic where that is not Lava's.

Where Lava cannot be had, the reference simulator, which equals Lava's processes, takes its place, and the report says so.
"""

from __future__ import annotations

from typing import Any

from spikeprop_hardware import target as found_target

from spikeprop.deploy import VENDORS, RunOn, bits_curve, chip_budget, compare, encoded, simulate_on_chip
from spikeprop.errors import HardwareError, LavaMissing
from spikeprop.experiment.stages.stage import NIR_FILE, PipelineRun
from spikeprop.runtime.seeding import seed_torch


def simulate_network(run: PipelineRun) -> dict[str, Any]:
    """Simulate ``network.nir``; without samples, or where there is no such file, the stage is left out."""
    settings, file = run.settings.simulate, run.file(NIR_FILE)
    if settings.samples == 0 or not file.exists():
        return {"samples": 0}
    images, labels = next(run.data.test(settings.samples).epoch(0))
    steps, network = None if run.data.in_time else run.steps, run.last_network()

    chip = None if settings.target is None else found_target(settings.target).name

    def simulated(backend: Any) -> dict[str, Any]:
        seed_torch(run.settings.seed, 3)
        target = None if chip in VENDORS else chip
        where = RunOn(backend=backend, precision="float" if target is None else "fixed", target=target)
        return compare(network, file, images, labels, steps, run.context.notify, where) | {"backend": backend}

    try:
        found = simulated(settings.backend)
    except LavaMissing as error:
        run.context.notify(f"warning: simulated by the reference simulator, which equals Lava's processes: {error}")
        found = simulated("reference") | {"why": str(error)}
    if chip is not None and chip in VENDORS:
        seed_torch(run.settings.seed, 3)
        try:
            on_chip = simulate_on_chip(network, file, images, labels, steps, run.context.notify, chip)
        except HardwareError as error:  # of trained weights or of sequences; the run has its other results
            run.context.notify(f"warning: not simulated in the integers of {chip}: {error}")
            on_chip = {"why": str(error)}
        found |= {"on_chip": on_chip | {"target": chip}}
    seed_torch(run.settings.seed, 3)
    found |= {"chip": chip_budget(network, encoded(network, images, steps), chip or "loihi2")}
    if not settings.bits:
        return found
    images, labels = next(run.data.test(settings.bits_samples).epoch(0))
    seed_torch(run.settings.seed, 3)
    return found | {"bits": bits_curve(network, images, labels, steps, formats=settings.bits)}
