"""Files that were spoilt on purpose, by the hundred thousand: `make fuzz` reads all of them, test_fuzz.py a few."""
