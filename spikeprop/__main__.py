"""``python -m spikeprop``, ``torchrun -m spikeprop``, and the command ``spikeprop``: the command line."""


def start() -> None:
    """Run the command line; a Ctrl-C while it is imported ends without a traceback, as one later does."""
    try:
        from spikeprop.cli import main
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    main(prog_name="spikeprop")


if __name__ == "__main__":  # spawned processes import this module again
    start()
