"""Training in several processes: data parallel, sharded, and batch normalisation over the whole batch."""
