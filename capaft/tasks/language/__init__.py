"""Texts as language models read and write them."""
