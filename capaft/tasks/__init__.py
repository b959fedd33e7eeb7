"""One task a file; their shared code is in the packages within."""
