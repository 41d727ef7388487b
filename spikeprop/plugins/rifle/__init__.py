"""RIFLE (Li et al. 2020) and L2-SP (Li et al. 2018): callbacks for fine-tuning pretrained networks.

RIFLE re-initialises the head R times, with the head's rate lr/2 (1 + cos(pi t/u)) in each period of u steps; L2-SP adds the
penalty alpha/2 |w - w0|^2 + beta/2 |head|^2. Both fill the slot ``callbacks`` of training (``Callback``). ``Transfer`` is the
experiment: recipe mnist_cnn_rifle.
"""

from spikeprop.plugins.rifle.callbacks import L2SP, RIFLE
from spikeprop.plugins.rifle.transfer import Transfer

__all__ = ["L2SP", "RIFLE", "Transfer"]
