"""Trains the checkpoint that ships as "mini": `make train-mini`."""
