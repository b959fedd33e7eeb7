"""One task a file; what they share is in the packages within."""
