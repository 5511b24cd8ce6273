"""Image files, the recipe inside them, and layer maps."""
