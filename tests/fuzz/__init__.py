"""Reads deliberately corrupted files: `make fuzz` reads more than a hundred thousand, test_fuzz.py a few hundred."""
