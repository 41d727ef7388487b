"""The stage ``export``: the last spiking network is written as NIR, for Lava and for hardware."""

from __future__ import annotations

from typing import Any

from spikeprop.deploy import export
from spikeprop.errors import NirError
from spikeprop.experiment.stages.stage import NIR_FILE, PipelineRun


def export_network(run: PipelineRun) -> dict[str, Any]:
    """Write ``network.nir``; a network that NIR cannot hold is a warning, since the report is worth having without the file."""
    try:
        network = run.last_network()
        export(network, run.file(NIR_FILE), run.describe(network))
    except NirError as error:
        run.context.notify(f"warning: the network cannot be written for the hardware: {error}")
        return {"file": None, "why": str(error)}
    return {"file": NIR_FILE}
