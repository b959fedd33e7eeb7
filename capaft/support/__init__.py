"""Helpers of every package: errors, files, strict JSON, the hub's state."""
