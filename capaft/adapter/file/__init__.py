"""The adapter file: written, read, verified."""
