"""What needs a GPU: `make gpu-check` and `make tune`, and the compilations that both need."""
