"""What a label is: one class, several, or a number."""
