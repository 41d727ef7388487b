"""The stages of the pipelines, in the order in which they run; each is one file."""

from spikeprop.experiment.stages.ann import train_ann
from spikeprop.experiment.stages.conversion import convert_ann
from spikeprop.experiment.stages.data import load_data
from spikeprop.experiment.stages.evaluation import PREDICTIONS, evaluate_networks, evaluate_trained, keep_predictions
from spikeprop.experiment.stages.export import export_network
from spikeprop.experiment.stages.finetuning import finetune_network
from spikeprop.experiment.stages.scratch import train_spiking
from spikeprop.experiment.stages.simulation import simulate_network
from spikeprop.experiment.stages.stage import PipelineRun, Stage, run_stages

HYBRID = (
    Stage("data", load_data),
    Stage("ann", train_ann, network="ann", distributed=True),
    Stage("convert", convert_ann, network="converted", distributed=True),
    Stage("finetune", finetune_network, network="finetuned", distributed=True),
    Stage("evaluate", evaluate_networks, distributed=True, finish=keep_predictions),
    Stage("export", export_network),
    Stage("simulate", simulate_network),
)
SCRATCH = (
    Stage("data", load_data),
    Stage("train", train_spiking, network="trained", distributed=True),
    Stage("evaluate", evaluate_trained, distributed=True, finish=keep_predictions),
    Stage("export", export_network),
    Stage("simulate", simulate_network),
)

__all__ = ["HYBRID", "PREDICTIONS", "SCRATCH", "PipelineRun", "Stage", "run_stages"]
