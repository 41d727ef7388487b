"""How a spiking network runs fast: packed spikes, forward and backward, in chunks of time steps.

Who owns which piece of time, batch and memory::

                     batch: B samples                                  owns
    +-------------------------------------------------+
    | BatchRun                            (batch.py)  |  the encoded input of each chunk (for the backward pass), the weights
    |   all samples, all T steps                      |  as kernels read them (layout.py), the accumulated output
    |  +-----------+  thread 1    +-----------+ 2     |
    |  | SliceRun  | SliceRun ... | SliceRun  | ...   |  a few samples, all layers; the slices of a thread share one
    |  |           |              |           |       |  BufferPool: floats live there for one piece or chunk only
    |  | LayerRun  |              | LayerRun  |       |  one layer: potentials, and packed spikes (one bit a neuron a step)
    |  |  SynapseRun ...          |  ...      |       |  of all T steps for a backward pass, of one chunk without
    +-------------------------------------------------+
    time:   |<------ chunk ----->|<------ chunk ----->| ... T      all threads finish a chunk before the next is encoded
            |<piece>|<piece>|... |                               a large layer cuts its chunk, so that floats stay in the cache

A layer that reads its own spikes of one step before (recurrent_run.py) goes on the way back step by step.

``LayerwiseRun`` (layerwise.py) does the opposite for calibration: one layer at a time, all samples, all T steps. How many
samples, steps and bytes go together is written in ``sizes.py``; ``kernels/`` does the arithmetic.
"""
