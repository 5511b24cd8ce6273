"""Checkpoints: found, read, checked and loaded."""
