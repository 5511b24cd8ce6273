"""For GPUs that are not at hand: the kernels compiled, and forecasts read off the compiled code."""
