"""The calibrators: one method a file, which names its paper."""
