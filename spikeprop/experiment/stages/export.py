"""The stage ``export``: the fine-tuned network is written as NIR, for Lava and for hardware."""

from __future__ import annotations

from typing import Any

from spikeprop.deploy import export
from spikeprop.errors import NirError
from spikeprop.experiment.network_checkpoint import describe_network
from spikeprop.experiment.stages.stage import NIR_FILE, PipelineRun


def export_network(run: PipelineRun) -> dict[str, Any]:
    """Write ``network.nir``; a network that NIR cannot hold is a warning, since the report is worth having without the file."""
    try:
        network = run.load_spiking("finetuned")
        export(network, run.file(NIR_FILE), describe_network(network, run.settings, run.data))
    except NirError as error:
        run.context.notify(f"warning: the network cannot be written for the hardware: {error}")
        return {"file": None, "why": str(error)}
    return {"file": NIR_FILE}
