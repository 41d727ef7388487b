"""Evaluation: accuracy against time steps with intervals, activity, cost, errors of the conversion, and the report."""

from spikeprop.evaluate.accuracy import ann_accuracy, snn_accuracy
from spikeprop.evaluate.activity import ADD_JOULES, MAC_JOULES, ActivityMeter, count_macs, device_of, fan_out, silent_layers
from spikeprop.evaluate.error import LayerError, conversion_error
from spikeprop.evaluate.journal import Journal
from spikeprop.evaluate.loop import evaluate
from spikeprop.evaluate.pictures import draw, draw_conversion_error, draw_evaluation
from spikeprop.evaluate.predictor import BatchPredictions, Predictor
from spikeprop.evaluate.regression import RegressionError, ann_error, snn_error
from spikeprop.evaluate.report import Report, accuracy_rows, scalars_by_steps
from spikeprop.evaluate.scores import Predictions, Proportion, wilson
from spikeprop.evaluate.summary import accuracy_lines, class_table, seconds, summarise

__all__ = [
    "ADD_JOULES",
    "MAC_JOULES",
    "ActivityMeter",
    "BatchPredictions",
    "Journal",
    "LayerError",
    "Predictions",
    "Predictor",
    "Proportion",
    "RegressionError",
    "Report",
    "accuracy_lines",
    "accuracy_rows",
    "ann_accuracy",
    "ann_error",
    "class_table",
    "conversion_error",
    "count_macs",
    "device_of",
    "draw",
    "draw_conversion_error",
    "draw_evaluation",
    "evaluate",
    "fan_out",
    "scalars_by_steps",
    "seconds",
    "silent_layers",
    "snn_accuracy",
    "snn_error",
    "summarise",
    "wilson",
]
