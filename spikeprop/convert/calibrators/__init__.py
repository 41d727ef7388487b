"""The calibrators, one paper a file."""
