"""The running node: storage, peers, mempool, mining and RPC around the pure core."""
