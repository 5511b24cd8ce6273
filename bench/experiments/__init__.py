"""Tables and a picture of what DoLa and 8-bit weights do to the pictures of the mini model, and lenses to text."""
