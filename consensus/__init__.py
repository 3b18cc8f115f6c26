"""The rules of the chain: pure functions over frozen values. No I/O, no clock, no logging."""
