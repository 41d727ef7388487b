"""The stages of the hybrid conversion, in the order in which they run; each is one file."""

from spikeprop.experiment.stages.ann import train_ann
from spikeprop.experiment.stages.conversion import convert_ann
from spikeprop.experiment.stages.data import load_data
from spikeprop.experiment.stages.evaluation import PREDICTIONS, evaluate_networks, keep_predictions
from spikeprop.experiment.stages.export import export_network
from spikeprop.experiment.stages.finetuning import finetune_network
from spikeprop.experiment.stages.simulation import simulate_network
from spikeprop.experiment.stages.stage import PipelineRun, Stage

STAGES = (
    Stage("data", load_data),
    Stage("ann", train_ann, network="ann", distributed=True),
    Stage("convert", convert_ann, network="converted", distributed=True),
    Stage("finetune", finetune_network, network="finetuned", distributed=True),
    Stage("evaluate", evaluate_networks, distributed=True, finish=keep_predictions),
    Stage("export", export_network),
    Stage("simulate", simulate_network),
)

__all__ = ["PREDICTIONS", "STAGES", "PipelineRun", "Stage"]
