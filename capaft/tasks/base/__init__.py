"""The base of all tasks: columns, features and batches, and the recognition of the task that a data set is for."""
