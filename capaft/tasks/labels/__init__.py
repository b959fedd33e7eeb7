"""Kinds of labels: one class, several classes, or a number."""
