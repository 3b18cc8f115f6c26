"""What convinces without being recomputed or trusted: Freivalds' check of a product, Merkle paths, the state trie."""
