"""Benchmarks: ``python -m experiments.bench.<name>``."""
