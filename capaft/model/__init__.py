"""A checkpoint, and the places in it where an adapter can attach."""
