"""Faults put into running commands, shared by the tests and `python -m benchmarks faults`."""
