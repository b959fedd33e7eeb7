"""The tasks: one file each, with its head, features, collator, metrics and predictions."""
