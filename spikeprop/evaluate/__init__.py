"""Evaluation: accuracy against time steps with intervals, activity, cost, errors of the conversion, and ``Report``, what a run
returns."""

from spikeprop.evaluate import plot as plot
from spikeprop.evaluate.accuracy import ann_accuracy, ann_mean_iou, snn_accuracy, snn_mean_iou
from spikeprop.evaluate.activity import ADD_JOULES, CONSTANTS, ENERGY_MODEL, MAC_JOULES, ActivityMeter, count_macs, device_of
from spikeprop.evaluate.diagnosis import ConversionDiagnosis, LayerLoss, diagnose
from spikeprop.evaluate.early_exit import EarlyExit, Exits, leave_early
from spikeprop.evaluate.error import LayerError, conversion_error, output_error
from spikeprop.evaluate.journal import Journal
from spikeprop.evaluate.loop import evaluate
from spikeprop.evaluate.pictures import draw_conversion_error, draw_evaluation, draw_run
from spikeprop.evaluate.predictor import BatchPredictions, Predictor
from spikeprop.evaluate.regression import RegressionError, ann_error, snn_error
from spikeprop.evaluate.report import Report, run_rows, scalars_by_steps
from spikeprop.evaluate.scores import Predictions, Proportion, wilson
from spikeprop.evaluate.summary import class_table, evaluation_rows, summarise, total_seconds
from spikeprop.snn.activity import fan_out
from spikeprop.snn.watching import silent_layers

__all__ = [
    "ADD_JOULES",
    "CONSTANTS",
    "ENERGY_MODEL",
    "MAC_JOULES",
    "ActivityMeter",
    "BatchPredictions",
    "ConversionDiagnosis",
    "EarlyExit",
    "Exits",
    "Journal",
    "LayerError",
    "LayerLoss",
    "Predictions",
    "Predictor",
    "Proportion",
    "RegressionError",
    "Report",
    "ann_accuracy",
    "ann_error",
    "ann_mean_iou",
    "class_table",
    "conversion_error",
    "count_macs",
    "device_of",
    "diagnose",
    "draw_conversion_error",
    "draw_evaluation",
    "draw_run",
    "evaluate",
    "evaluation_rows",
    "fan_out",
    "leave_early",
    "output_error",
    "run_rows",
    "scalars_by_steps",
    "silent_layers",
    "snn_accuracy",
    "snn_error",
    "snn_mean_iou",
    "summarise",
    "total_seconds",
    "wilson",
]
