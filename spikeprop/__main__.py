"""``python -m spikeprop``, and so ``torchrun -m spikeprop``: the command line."""

from spikeprop.cli import main

if __name__ == "__main__":  # spawned processes import this module again
    main(prog_name="spikeprop")
