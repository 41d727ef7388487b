"""Spiking networks: neurons, surrogate derivatives, encoders and the graph that joins them."""

from spikeprop.snn.encoder import Direct, Encoder, Poisson
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.network import NetworkState, SpikingNetwork
from spikeprop.snn.neuron import IF, LIF, Neuron, NeuronState
from spikeprop.snn.signed import SignedIF
from spikeprop.snn.surrogate import STDB, ATan, FastSigmoid, Surrogate, Triangle
from spikeprop.snn.synapse import ChannelPad, DropoutMasks, Gain, SampleDropout, Synapse

__all__ = [
    "IF",
    "INPUT",
    "LIF",
    "STDB",
    "ATan",
    "ChannelPad",
    "Direct",
    "DropoutMasks",
    "Encoder",
    "FastSigmoid",
    "Gain",
    "Layer",
    "NetworkState",
    "Neuron",
    "NeuronState",
    "Poisson",
    "SampleDropout",
    "SignedIF",
    "SpikingNetwork",
    "Surrogate",
    "Synapse",
    "Triangle",
]
