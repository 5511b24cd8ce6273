"""The pictures that the mini model was trained on, and the judge of what it draws."""
