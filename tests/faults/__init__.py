"""Faults done to real runs on purpose: `make faults` does all of them and counts; test_faults.py a few of each."""
