"""Spiking networks: neurons, surrogate derivatives, encoders and the graph that joins them."""

from spikeprop.snn.differential import DifferentialIF
from spikeprop.snn.dynamics import LayerDynamics, NeuronState, ReadoutDynamics
from spikeprop.snn.encoder import Direct, Encoder, Poisson
from spikeprop.snn.in_place import Recurrent
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.network import NetworkState, SpikingNetwork
from spikeprop.snn.neuron import IF, LIF, Neuron
from spikeprop.snn.normalisation import TemporalBatchNorm, ThresholdBatchNorm
from spikeprop.snn.pooling import SpikingMaxPool, StepMaxPool
from spikeprop.snn.readout import ReadoutSchedule
from spikeprop.snn.signed import GradedIF, SignedIF
from spikeprop.snn.surrogate import STDB, ATan, FastSigmoid, Surrogate, Triangle
from spikeprop.snn.synapse import ChannelPad, DropoutMasks, Gain, SampleDropout, Synapse

__all__ = [
    "IF",
    "INPUT",
    "LIF",
    "STDB",
    "ATan",
    "ChannelPad",
    "DifferentialIF",
    "Direct",
    "DropoutMasks",
    "Encoder",
    "FastSigmoid",
    "Gain",
    "GradedIF",
    "Layer",
    "LayerDynamics",
    "NetworkState",
    "Neuron",
    "NeuronState",
    "Poisson",
    "ReadoutDynamics",
    "ReadoutSchedule",
    "Recurrent",
    "SampleDropout",
    "SignedIF",
    "SpikingMaxPool",
    "SpikingNetwork",
    "StepMaxPool",
    "Surrogate",
    "Synapse",
    "TemporalBatchNorm",
    "ThresholdBatchNorm",
    "Triangle",
]
