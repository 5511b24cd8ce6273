"""Reads checkpoints by name, and checks every file and tensor."""
