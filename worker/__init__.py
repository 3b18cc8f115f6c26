"""Earning by contributing compute: the worker's key, and the one loop that makes units, wherever they come from."""
