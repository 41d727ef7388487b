"""Evaluation: accuracy against time steps, activity, cost, and the report."""

from spikeprop.evaluate.accuracy import ann_accuracy, snn_accuracy
from spikeprop.evaluate.activity import ADD_JOULES, MAC_JOULES, ActivityMeter, count_macs, fan_out, silent_layers
from spikeprop.evaluate.report import Report, accuracy_rows, draw

__all__ = [
    "ADD_JOULES",
    "MAC_JOULES",
    "ActivityMeter",
    "Report",
    "accuracy_rows",
    "ann_accuracy",
    "count_macs",
    "draw",
    "fan_out",
    "silent_layers",
    "snn_accuracy",
]
