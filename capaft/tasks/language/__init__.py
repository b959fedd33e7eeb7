"""Texts as language models read and write them, and how generated texts are scored."""
