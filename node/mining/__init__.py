"""What a block is made of and who is working on it."""
