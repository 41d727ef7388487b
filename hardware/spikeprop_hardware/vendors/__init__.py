"""Chips in their own arithmetic, each held against its vendor's simulator: one module a chip, and a ``*_worker`` that runs in the
simulator's environment.

Each module has ``lower(network, input_limit, timesteps)``, the integers of a laid-out network on that chip, for inputs of so many
spikes and simulations of so many steps where integers depend on them; ``rounded``, with the same arguments, what they do to each
layer; ``simulate(lowered, inputs)``, our model of the chip;
``run(lowered, inputs)``, the same by the vendor's simulator; ``late(network)``, the steps by which the output comes later there;
and ``ENVIRONMENT``, where the simulator lives. ``simulate`` and ``run`` return every spike by layer, and are equal, or one of
them is wrong.
"""
