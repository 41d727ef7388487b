"""How a spiking network runs fast: packed spikes, forward and backward, in chunks of time steps."""
