"""What is trained for a model: lenses for its early layers."""
