"""RIFLE (Li et al. 2020): fine-tuning that re-initialises the head now and then, so that the layers below learn more."""

from spikeprop.plugins.rifle.callbacks import L2SP, RIFLE
from spikeprop.plugins.rifle.transfer import Transfer

__all__ = ["L2SP", "RIFLE", "Transfer"]
