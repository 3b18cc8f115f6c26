"""A network of real node processes on one machine, for its developer: `tilework devnet`."""
