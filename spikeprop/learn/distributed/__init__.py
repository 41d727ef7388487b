"""Training in several processes: data parallel, sharded, and batch-norm over the complete batch."""
