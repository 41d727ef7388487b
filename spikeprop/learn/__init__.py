"""Learning: rules that compute gradients, losses, schedules, callbacks, and the one training loop ``fit``."""

from spikeprop.learn.averaging import EMA, Lookahead
from spikeprop.learn.backprop import Backprop
from spikeprop.learn.bptt import BPTT
from spikeprop.learn.callback import Callback, CollapseGuard, MetricsLog, ProgressBar, TrainingState
from spikeprop.learn.checkpoint import Checkpoint, drop_progress, load_checkpoint, load_latest, load_model, save_checkpoint
from spikeprop.learn.distillation import Distillation
from spikeprop.learn.distributed.sharding import check_shardable, shard
from spikeprop.learn.history import History
from spikeprop.learn.loop import fit
from spikeprop.learn.loss import CrossEntropy, Loss, SquaredError
from spikeprop.learn.muon import MuonSGD
from spikeprop.learn.online.rtrl import RTRL
from spikeprop.learn.online.rules import OTTT, EProp
from spikeprop.learn.rates import BiasRate, with_rates
from spikeprop.learn.regulariser import LowerRate, Regulariser, UpperRate
from spikeprop.learn.rule import LearningRule
from spikeprop.learn.schedule import Constant, Cosine, OneCycle, Schedule, Steps, Triangular
from spikeprop.learn.temporal import EachStep, SpikeCount, TemporalLoss, VanRossum
from spikeprop.learn.tensorboard import TensorBoardLog, tensorboard_installed, write_scalars
from spikeprop.learn.whitening import Whitening
from spikeprop.runtime.batches import Batches, Shardable

__all__ = [
    "BPTT",
    "EMA",
    "OTTT",
    "RTRL",
    "Backprop",
    "Batches",
    "BiasRate",
    "Callback",
    "Checkpoint",
    "CollapseGuard",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Distillation",
    "EProp",
    "EachStep",
    "History",
    "LearningRule",
    "Lookahead",
    "Loss",
    "LowerRate",
    "MetricsLog",
    "MuonSGD",
    "OneCycle",
    "ProgressBar",
    "Regulariser",
    "Schedule",
    "Shardable",
    "SpikeCount",
    "SquaredError",
    "Steps",
    "TemporalLoss",
    "TensorBoardLog",
    "TrainingState",
    "Triangular",
    "UpperRate",
    "VanRossum",
    "Whitening",
    "check_shardable",
    "drop_progress",
    "fit",
    "load_checkpoint",
    "load_latest",
    "load_model",
    "save_checkpoint",
    "shard",
    "tensorboard_installed",
    "with_rates",
    "write_scalars",
]
