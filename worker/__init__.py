"""Earning by contributing compute: the worker's key, and the loop that evaluates units."""
