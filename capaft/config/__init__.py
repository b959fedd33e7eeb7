"""The settings, and the sources that a user may set them from."""
