"""A bank of adapters behind HTTP."""
