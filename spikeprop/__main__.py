"""``python -m spikeprop``, and so ``torchrun -m spikeprop``: the command line."""

from spikeprop.cli import main

main(prog_name="spikeprop")
