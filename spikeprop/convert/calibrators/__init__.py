"""Threshold calibrators: each sets a converted network's thresholds in the way of one paper."""
