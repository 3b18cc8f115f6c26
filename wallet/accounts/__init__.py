"""What a user keeps: keys, the keystore, passwords, payment requests, amounts."""
