"""What every package may use: errors, files, strict JSON, the hub's state."""
