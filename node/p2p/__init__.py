"""Peers: one connection (transport, handshake, peer), what is asked of many, and the network as a whole."""
