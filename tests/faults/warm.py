"""Imported by the server from which runs are forked: it checks the recipe and computes layers of each kind, once.

What costs seconds in every fresh process (imports on first use, compiled kernels from the cache) is then there.
"""

from __future__ import annotations

import torch

from spikeprop import BPTT, IF, Backprop, Digits, MaxActivation, convert, fit
from spikeprop.recipe import load_recipe

torch.set_num_threads(1)
torch.manual_seed(0)
_experiment = load_recipe("digits_cnn_stdb").experiment
_experiment.check()
_ann = _experiment.ann.build()
_batches = Digits(train_limit=16).train(8, 0)
fit(_ann, Backprop(), _batches, torch.optim.SGD(_ann.parameters(), lr=1e-3), epochs=1)
_network = convert(_ann, [next(_batches.epoch(0))[0]], IF(), MaxActivation())
fit(_network, BPTT(timesteps=4), _batches, torch.optim.Adam(_network.parameters(), lr=1e-4, amsgrad=True), epochs=1)
