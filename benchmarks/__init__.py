"""Benchmarks: one script for each hot path, each with `run() -> list[Row]`."""
