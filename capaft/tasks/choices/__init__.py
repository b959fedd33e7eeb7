"""Contexts with choices, one of which is right."""
