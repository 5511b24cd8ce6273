"""Benchmarks: what `make bench` times with pytest, and programs that time a whole thing each by its own command."""
