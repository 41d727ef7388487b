"""Spiking networks: neurons, surrogate derivatives, encoders and the graph that joins them."""

from spikeprop.snn.differential import DifferentialIF
from spikeprop.snn.dynamics import LayerDynamics, NeuronState, ReadoutDynamics
from spikeprop.snn.encoder import Delta, Direct, Encoder, Frames, Latency, Poisson
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.network import NetworkState, SpikingNetwork
from spikeprop.snn.neuron import IF, LIF, Neuron
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.readout import Integrator, ReadoutSchedule
from spikeprop.snn.signed import GradedIF, SignedIF
from spikeprop.snn.surrogate import STDB, ATan, FastSigmoid, Surrogate, Triangle
from spikeprop.snn.synapse import ChannelPad, DropoutMasks, Gain, SampleDropout, Synapse
from spikeprop.snn.timed_input import time_first

__all__ = [
    "IF",
    "INPUT",
    "LIF",
    "STDB",
    "ATan",
    "ChannelPad",
    "Delta",
    "DifferentialIF",
    "Direct",
    "DropoutMasks",
    "Encoder",
    "FastSigmoid",
    "Frames",
    "Gain",
    "GradedIF",
    "Integrator",
    "Latency",
    "Layer",
    "LayerDynamics",
    "NetworkState",
    "Neuron",
    "NeuronState",
    "Poisson",
    "ReadoutDynamics",
    "ReadoutSchedule",
    "SampleDropout",
    "SignedIF",
    "SpikingMaxPool",
    "SpikingNetwork",
    "Surrogate",
    "Synapse",
    "Triangle",
    "time_first",
]
