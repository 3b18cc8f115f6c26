"""What is durable, and which blocks count: the store, tensors, headers, the state at the tip, snapshots."""
