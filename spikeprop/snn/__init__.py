"""Spiking networks: neurons, surrogate derivatives, encoders and the graph that joins them."""

from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.advance import NetworkState
from spikeprop.snn.cuba import CubaLIF
from spikeprop.snn.differential import DifferentialIF
from spikeprop.snn.dynamics import LayerDynamics, NeuronState, ReadoutDynamics
from spikeprop.snn.encoder import Delta, Direct, Encoder, Frames, Latency, Poisson
from spikeprop.snn.firing import NEVER, advance_since, spike
from spikeprop.snn.in_place import Recurrent
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.network import SpikingNetwork
from spikeprop.snn.neuron import IF, LIF, PLIF, Neuron
from spikeprop.snn.normalisation import TemporalBatchNorm, ThresholdBatchNorm
from spikeprop.snn.pooling import SpikingMaxPool, StepMaxPool
from spikeprop.snn.readout import Integrator, ReadoutSchedule
from spikeprop.snn.recording import SpikeRecording
from spikeprop.snn.recurrence import RLIF
from spikeprop.snn.signed import GradedIF, SignedIF
from spikeprop.snn.summary import LayerSummary, NetworkSummary
from spikeprop.snn.surrogate import STDB, ATan, FastSigmoid, MultiGaussian, Sigmoid, Surrogate, Triangle
from spikeprop.snn.synapse import ChannelPad, DropoutMasks, Gain, SampleDropout, Synapse
from spikeprop.snn.timed_input import time_first

__all__ = [
    "ALIF",
    "IF",
    "INPUT",
    "LIF",
    "NEVER",
    "PLIF",
    "RLIF",
    "STDB",
    "ATan",
    "ChannelPad",
    "CubaLIF",
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
    "LayerSummary",
    "MultiGaussian",
    "NetworkState",
    "NetworkSummary",
    "Neuron",
    "NeuronState",
    "Poisson",
    "ReadoutDynamics",
    "ReadoutSchedule",
    "Recurrent",
    "SampleDropout",
    "Sigmoid",
    "SignedIF",
    "SpikeRecording",
    "SpikingMaxPool",
    "SpikingNetwork",
    "StepMaxPool",
    "Surrogate",
    "Synapse",
    "TemporalBatchNorm",
    "ThresholdBatchNorm",
    "Triangle",
    "advance_since",
    "spike",
    "time_first",
]
