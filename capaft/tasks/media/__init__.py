"""Images and recordings to classify."""
