"""Deliberate faults in real runs: `make faults` causes all of them, with counts; test_faults.py a few of each."""
