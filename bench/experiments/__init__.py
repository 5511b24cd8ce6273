"""What DoLa and 8-bit weights do to the pictures of the mini model, in one table each."""
