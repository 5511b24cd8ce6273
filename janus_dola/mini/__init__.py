"""The checkpoint that ships with the package, the pictures it was trained on and the judge of what it draws."""
