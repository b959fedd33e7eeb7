"""Answers within a context."""
